//! What the port answers while this coordinator leads, and while it does not.
//!
//! Nothing that is acknowledged may be undone by a coordinator that leads by then. So an answer
//! leaves only while the lease holds: it is asked before a call begins and again before its answer.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use qctl_proto::error::{Fault, Reason};
use tonic::Status;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt;

use crate::database::Standing;
use crate::store::Lease;
use crate::web;

/// When a call may be repeated that nobody could answer.
const SOON: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(1);

/// Decides who answers.
#[derive(Clone)]
pub(crate) struct Gate {
    face: Arc<RwLock<Face>>,
    health: HealthReporter,
}

enum Face {
    /// The use cases of this term.
    Leading(Router, Lease),
    /// That somebody else leads.
    Away(Standing),
}

impl Gate {
    /// A gate to nothing, and what to serve for good.
    pub(crate) async fn new() -> (Self, Router) {
        let (health, service) = tonic_health::server::health_reporter();
        let gate = Self {
            face: Arc::new(RwLock::new(Face::Away(Standing::Starting))),
            health,
        };
        gate.say(ServingStatus::NotServing).await;
        let health = tonic::service::Routes::new(service)
            .into_axum_router()
            .reset_fallback();
        let everything_else = Router::new().fallback(pass).with_state(gate.clone());
        let router = health.fallback_service(everything_else);
        (gate, router)
    }

    /// Serves this while the lease holds.
    pub(crate) async fn open(&self, router: Router, lease: Lease) {
        self.set(Face::Leading(router, lease));
        self.say(ServingStatus::Serving).await;
    }

    /// Serves nothing any more but the news of who leads.
    pub(crate) async fn close(&self) {
        self.set(Face::Away(Standing::Starting));
        self.say(ServingStatus::NotServing).await;
    }

    /// Who leads, for those who ask this one; ignored while it leads.
    pub(crate) fn tell(&self, standing: Standing) {
        let mut face = self.face.write().unwrap_or_else(PoisonError::into_inner);
        if let Face::Away(known) = &mut *face {
            *known = standing;
        }
    }

    fn set(&self, face: Face) {
        *self.face.write().unwrap_or_else(PoisonError::into_inner) = face;
    }

    async fn say(&self, status: ServingStatus) {
        // The empty name is the program as a whole.
        self.health.set_service_status("", status).await;
    }

    fn present(&self) -> Face {
        match &*self.face.read().unwrap_or_else(PoisonError::into_inner) {
            Face::Leading(router, lease) => Face::Leading(router.clone(), lease.clone()),
            Face::Away(standing) => Face::Away(standing.clone()),
        }
    }
}

async fn pass(State(gate): State<Gate>, request: Request) -> Response {
    let (router, lease) = match gate.present() {
        Face::Leading(router, lease) => (router, lease),
        Face::Away(standing) => return Question::of(&request).answer(&standing),
    };
    let question = Question::of(&request);
    if !lease.holds() {
        return question.answer(&Standing::Starting);
    }
    let answer = match router.oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    };
    if lease.holds() {
        return answer;
    }
    question.answer(&Standing::Starting)
}

/// What is left of a request once it was answered.
struct Question {
    is_call: bool,
    path: String,
}

impl Question {
    fn of(request: &Request) -> Self {
        Self {
            is_call: request
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")),
            path: request
                .uri()
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
        }
    }

    fn answer(&self, standing: &Standing) -> Response {
        if self.is_call {
            return Status::from(fault(standing)).into_http();
        }
        if let Standing::Behind { url, .. } = standing
            && let Ok(location) = HeaderValue::try_from(format!("{url}{}", self.path))
            && !url.is_empty()
        {
            let headers = [
                (header::LOCATION, location),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            return (StatusCode::TEMPORARY_REDIRECT, headers).into_response();
        }
        web::nobody_leads().into_response()
    }
}

fn fault(standing: &Standing) -> Fault {
    match standing {
        Standing::Starting => Fault::new(
            Reason::NotLeader,
            "this coordinator is not ready to lead, and no other one is known to",
        )
        .hint("call again in a moment")
        .retry_after(SOON),
        Standing::Behind { name, url } => {
            let fault = Fault::new(
                Reason::NotLeader,
                format!("this coordinator stands by while another one leads ({name})"),
            )
            .retry_after(LATER);
            if url.is_empty() {
                fault.hint("call that one")
            } else {
                fault.hint(format!("call {url}")).leader(url)
            }
        }
        Standing::Blind => Fault::new(
            Reason::DatabaseUnavailable,
            "the coordinator cannot reach its database, so it does not know who leads",
        )
        .hint("jobs that run go on; call again once the database is back")
        .retry_after(LATER),
    }
}
