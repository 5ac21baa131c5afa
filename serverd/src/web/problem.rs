//! Errors as clients see them: problem documents (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rssh_proto::{Failure, FailureKind};
use serde::Serialize;

use crate::store::StoreError;

/// When a busy server may be asked again, in seconds.
const AGAIN_S: u32 = 1;

/// What went wrong, and how a program tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    failure: Failure,
}

/// The document. `code` is the failure's kind, as `rssh` names it, and `exit_code` what `rssh` would end with.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: FailureKind,
    exit_code: u8,
}

impl Problem {
    /// A failure, with the status that its kind has.
    pub fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        Failure::new(kind, message).into()
    }

    /// The server cannot answer now.
    pub fn busy(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Busy, message)
    }

    /// The caller asks too often.
    pub fn too_many(message: impl AsRef<str>) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            failure: Failure::busy(message, 1),
        }
    }

    /// The request is malformed.
    pub fn bad_request(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::BadRequest, message)
    }

    /// The caller may not do this.
    pub fn denied(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Denied, message)
    }

    /// Nobody knows who calls.
    pub fn unauthorized(message: impl AsRef<str>) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            failure: Failure::new(FailureKind::Denied, message),
        }
    }

    /// There is no such thing.
    pub fn not_found(message: impl AsRef<str>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            failure: Failure::new(FailureKind::BadRequest, message),
        }
    }

    /// The body is larger than the route takes.
    pub fn too_large() -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            failure: Failure::new(FailureKind::BadRequest, "the request's body is too large"),
        }
    }

    /// The path is known, but not with this method.
    pub fn method_not_allowed() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            failure: Failure::new(FailureKind::BadRequest, "this path does not have that method"),
        }
    }

    /// A fault of ours: the log has the reason, the client does not.
    pub fn internal(what: &'static str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "{what}");
        Self::new(
            FailureKind::Internal,
            format!("{what}: the server's log has the reason"),
        )
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            status: status(failure.kind),
            failure,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Nameless => Self::bad_request(error.to_string()),
            StoreError::Away => Self::busy("the server cannot reach its database; try again in a moment"),
            StoreError::Taken { .. }
            | StoreError::Reserved(_)
            | StoreError::Unknown { .. }
            | StoreError::KeyTaken(_)
            | StoreError::Token
            | StoreError::Revoked { .. } => Self::denied(error.to_string()),
            other => {
                tracing::warn!(error = %other, "store");
                Self::busy("the server's database did not answer as it should; try again in a moment")
            }
        }
    }
}

fn status(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::BadRequest | FailureKind::Configuration => StatusCode::BAD_REQUEST,
        FailureKind::Denied | FailureKind::TargetNotAllowed | FailureKind::NameRefused => StatusCode::FORBIDDEN,
        FailureKind::WrongCertificate => StatusCode::UNAUTHORIZED,
        FailureKind::UnknownDevice | FailureKind::UnknownTunnel => StatusCode::NOT_FOUND,
        FailureKind::Busy | FailureKind::NobodyServing => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::DeviceLimit | FailureKind::Quarantined => StatusCode::CONFLICT,
        FailureKind::Offline | FailureKind::TargetRefused | FailureKind::SshFailed => StatusCode::BAD_GATEWAY,
        FailureKind::NotAnswering | FailureKind::Deadline => StatusCode::GATEWAY_TIMEOUT,
        FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let code = serde_json::to_value(self.failure.kind).unwrap_or_default();
        let document = Document {
            r#type: format!("urn:rssh:problem:{}", code.as_str().unwrap_or("internal")),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.failure.message(),
            code: self.failure.kind,
            exit_code: self.failure.kind.exit_code(),
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::SERVICE_UNAVAILABLE || self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, AGAIN_S.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_server_says_when_to_come_again() {
        let response = Problem::busy("x").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn every_kind_of_failure_is_an_error_to_http_too() {
        for kind in FailureKind::ALL {
            let status = Problem::new(*kind, "x").status();
            assert!(status.is_client_error() || status.is_server_error(), "{kind:?}");
        }
    }
}
