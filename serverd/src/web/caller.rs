//! Who calls: by client certificate, or by bearer token.
//!
//! A handler that takes a [`Caller`] is reached by known identities only. The database is asked on every request, so
//! that what was taken back is gone at once, however long a connection has been open.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use rssh_proto::UserId;
use serde::{Deserialize, Serialize};

use super::Web;
use super::problem::Problem;
use super::tls::{Certificate, Shown};
use crate::domain::Domain;
use crate::flood::Flow;
use crate::store::Kind;
use crate::token::{ApiToken, Scope};
use crate::who::Who;

/// How the caller proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Proof {
    Certificate(std::sync::Arc<Certificate>),
    /// Within these scopes.
    Token(Vec<Scope>),
}

/// Who calls, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub who: Who,
    proof: Proof,
}

impl Caller {
    /// The user who calls, when the token that stands for the user reaches this far; a certificate always does.
    ///
    /// # Errors
    /// When it is not a user, or the token lacks the scope.
    pub fn user(&self, scope: Scope) -> Result<&UserId, Problem> {
        if let Proof::Token(scopes) = &self.proof
            && !scopes.contains(&scope)
        {
            return Err(Problem::denied(format!(
                "this token may not do that; it lacks the scope {scope}"
            )));
        }
        match &self.who {
            Who::User(user) => Ok(user),
            other => Err(Problem::denied(format!(
                "{} is a {}; only users may do that",
                other.name(),
                other.kind().name()
            ))),
        }
    }

    /// The certificate that the caller showed.
    ///
    /// # Errors
    /// When it called with a token.
    pub fn certificate(&self) -> Result<&Certificate, Problem> {
        match &self.proof {
            Proof::Certificate(certificate) => Ok(certificate),
            Proof::Token(_) => Err(Problem::denied(
                "a token does not do here; call with a client certificate",
            )),
        }
    }
}

impl FromRequestParts<Web> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, web: &Web) -> Result<Self, Problem> {
        let store = &web.server.store;
        if let Some(header) = parts.headers.get(AUTHORIZATION) {
            let token = header
                .to_str()
                .ok()
                .and_then(|text| text.strip_prefix("Bearer "))
                .and_then(|text| text.trim().parse::<ApiToken>().ok())
                .ok_or_else(|| Problem::unauthorized("the Authorization header holds no bearer token of rssh"))?;
            let found = store.api_token(&token).await?;
            let (user, scopes) = found
                .ok_or_else(|| Problem::unauthorized("the token is unknown, expired or revoked; ask for another"))?;
            return paced(
                web,
                Self {
                    who: Who::User(user),
                    proof: Proof::Token(scopes),
                },
            );
        }
        let Some(certificate) = parts.extensions.get::<Shown>().and_then(|shown| shown.0.clone()) else {
            return Err(Problem::unauthorized(
                "nobody is known here without a client certificate or a bearer token",
            ));
        };
        let unknown = || Problem::unauthorized(format!("{} is not registered here", quoted(&certificate.name)));
        let kind = store.kind(&certificate.name).await?.ok_or_else(unknown)?;
        let who = who(certificate.domain, kind, &certificate.name).ok_or_else(unknown)?;
        paced(
            web,
            Self {
                who,
                proof: Proof::Certificate(certificate),
            },
        )
    }
}

/// The caller, unless it asks too often: by whichever way, it has one measure.
fn paced(web: &Web, caller: Caller) -> Result<Caller, Problem> {
    match web.server.flow(caller.who.name()) {
        Flow::Take => Ok(caller),
        Flow::Refuse { .. } | Flow::Drop => Err(Problem::too_many(format!(
            "{} sends more requests than {} takes; retry after a second",
            caller.who.name(),
            web.server.id
        ))),
    }
}

/// An identity, where the authority that signed its certificate is the one of its kind.
fn who(domain: Domain, kind: Kind, name: &str) -> Option<Who> {
    match (domain, kind) {
        (Domain::Devices, Kind::Device) => name.parse().ok().map(Who::Device),
        (Domain::Users, Kind::User) => name.parse().ok().map(Who::User),
        (Domain::Servers, Kind::Server) => name.parse().ok().map(Who::Server),
        (Domain::Servers, Kind::Router) => name.parse().ok().map(Who::Router),
        _ => None,
    }
}

fn quoted(name: &str) -> String {
    rssh_proto::text::quoted(name, 70)
}

/// What `GET /v1/whoami` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    pub kind: String,
    pub name: String,
    /// What the token is good for; absent with a certificate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scopes: Option<Vec<Scope>>,
}

pub(super) async fn whoami(caller: Caller) -> Json<WhoAmI> {
    Json(WhoAmI {
        kind: caller.who.kind().name().to_owned(),
        name: caller.who.name().to_owned(),
        scopes: match caller.proof {
            Proof::Certificate(_) => None,
            Proof::Token(scopes) => Some(scopes),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_vouches_for_its_own_kind_only() {
        assert_eq!(
            who(Domain::Users, Kind::User, "alice"),
            Some(Who::User("alice".parse().unwrap()))
        );
        for (domain, kind) in [
            (Domain::Users, Kind::Device),
            (Domain::Devices, Kind::User),
            (Domain::Devices, Kind::Server),
            (Domain::Users, Kind::Router),
            (Domain::Servers, Kind::User),
        ] {
            assert_eq!(who(domain, kind, "x1"), None, "{domain:?} {kind:?}");
        }
    }
}
