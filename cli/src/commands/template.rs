//! `qctl template`: the templates that jobs can be made from.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::output::table::{Cell, Column, Paint, Table};
use crate::submission::template::{self, Template};

/// Arguments of `qctl template`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with templates.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// List templates; your own replace the coordinator's of the same name
    List,
    /// Show one template's definition
    Show {
        /// Name of the template
        name: String,
    },
}

#[derive(Serialize)]
struct Document<'a> {
    name: &'a str,
    description: &'a str,
    source: &'static str,
    definition: &'a toml::Table,
}

#[derive(Serialize)]
struct Documents<'a> {
    templates: Vec<Document<'a>>,
}

impl<'a> From<&'a Template> for Document<'a> {
    fn from(template: &'a Template) -> Self {
        Self {
            name: &template.name,
            description: &template.description,
            source: template.source.as_str(),
            definition: &template.definition,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is no such template, or one cannot be understood.
pub async fn run(context: &Context, args: Args) -> Result<ExitCode, Error> {
    match args.action {
        Action::List => list(context).await?,
        Action::Show { name } => show(context, &name).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context) -> Result<(), Error> {
    let templates = template::all(context).await?;
    if context.output.json {
        return context.output.print_document(&Documents {
            templates: templates.iter().map(Document::from).collect(),
        });
    }
    let mut table = Table::new(&[
        Column::left("TEMPLATE"),
        Column::left("FROM"),
        Column::left("DESCRIPTION").shrinking(20),
    ]);
    for template in &templates {
        table.row(vec![
            Cell::painted(&template.name, Paint::Bold),
            Cell::painted(template.source.as_str(), Paint::Dim),
            Cell::from(&template.description),
        ]);
    }
    context.output.print(&table.render(&context.output.view()))
}

async fn show(context: &Context, name: &str) -> Result<(), Error> {
    let template = template::find(context, name).await?;
    if context.output.json {
        return context.output.print_document(&Document::from(&template));
    }
    context.output.print(&template.to_toml())
}
