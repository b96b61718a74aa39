//! Checkpoints as people read them. Pure.

use qctl_proto::v1;
use v1::checkpoint::State;

use super::table::{Cell, Column, Paint, Table};
use super::{View, text, time};

/// A table of a job's checkpoints.
pub fn list(checkpoints: &[v1::Checkpoint], view: &View) -> String {
    let mut table = Table::new(&[
        Column::left("CHECKPOINT"),
        Column::left("STATE"),
        Column::right("STEP"),
        Column::left("PUBLISHED"),
        Column::right("SIZE"),
        Column::right("FILES"),
        Column::left("WHERE").shrinking(10),
        Column::left("NOTE").shrinking(10),
        Column::left("FOLDER").shrinking(20),
    ]);
    for checkpoint in checkpoints {
        let (state, paint) = state(checkpoint);
        let place = match (checkpoint.uploaded, checkpoint.state()) {
            (true, State::Kept) => format!("{}, and uploaded", checkpoint.worker),
            _ => checkpoint.worker.clone(),
        };
        let published = time::instant(checkpoint.created_at.as_ref())
            .map(|at| time::clock(at, view.now, view.zone));
        table.row(vec![
            format!("{}.{}", checkpoint.attempt, checkpoint.number).into(),
            Cell::painted(state, paint),
            checkpoint
                .step
                .map(|step| step.to_string())
                .unwrap_or_default()
                .into(),
            Cell::painted(published.unwrap_or_default(), Paint::Dim),
            text::bytes(checkpoint.bytes).into(),
            checkpoint.files.to_string().into(),
            Cell::from(&place),
            Cell::from(&checkpoint.note),
            Cell::from(&checkpoint.path),
        ]);
    }
    table.render(view)
}

fn state(checkpoint: &v1::Checkpoint) -> (&'static str, Paint) {
    match checkpoint.state() {
        State::Kept if checkpoint.latest => ("latest", Paint::Green),
        State::Kept => ("kept", Paint::Plain),
        State::Damaged => ("damaged", Paint::Red),
        State::Removed => ("removed", Paint::Dim),
        State::Unspecified => ("", Paint::Plain),
    }
}
