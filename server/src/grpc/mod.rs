//! The services of the contract.

use std::sync::Arc;

use tonic::service::Routes;

use crate::app::App;

/// Every service. Callers are known by then: each request has a `Caller` among its extensions.
pub(crate) fn routes(_app: &Arc<App>) -> Routes {
    Routes::default()
}
