//! Log lines on standard error, and traces to a collector when one is named.

use std::io::IsTerminal;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogFormat;

/// The exporter speaks gRPC itself: tracing its own calls would never end.
const EXPORTERS_OWN: &str = "info,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off";

/// Why nothing is logged or traced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    #[error("the log filter cannot be read")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("traces cannot be sent to OTEL_EXPORTER_OTLP_ENDPOINT")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("something else already receives the log")]
    Twice(#[from] TryInitError),
}

/// Sends the last traces when it is shut down.
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts logging, and tracing when `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Must run on the runtime.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Compact => lines
            .compact()
            .with_ansi(std::io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let named = std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|value| !value.is_empty());
    let traces = named.map(|_| provider()).transpose()?;
    let spans = traces
        .as_ref()
        .map(|provider| {
            let filter = EnvFilter::try_new(EXPORTERS_OWN)?;
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("qctl-server"));
            Ok::<_, TelemetryError>(layer.with_filter(filter))
        })
        .transpose()?;
    tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init()?;
    Ok(Telemetry { traces })
}

fn provider() -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()?;
    let resource = Resource::builder().with_service_name("qctl-server").build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

impl Telemetry {
    /// Sends what was not sent yet. It blocks until the collector has answered, so it runs aside.
    pub(crate) async fn shut_down(self) {
        let Some(traces) = self.traces else { return };
        let sent = tokio::task::spawn_blocking(move || {
            traces.shutdown_with_timeout(std::time::Duration::from_secs(3))
        });
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %error, "the last traces were not sent"),
            Err(error) => tracing::warn!(error = %error, "sending the last traces failed"),
        }
    }
}
