//! This server's certificates renew themselves, at a server that has the authorities: itself, maybe.

use std::sync::Arc;

use rssh_mqtt::identity;
use rssh_mqtt::renewal::{self, Renewable};
use rssh_proto::enrolment::Renew;
use rssh_proto::{Failure, FailureKind};

use crate::config::Config;
use crate::pki;
use crate::web::tls::Acceptor;

/// Renews, for ever; where the configuration names nobody to ask, does nothing.
pub async fn run(config: Config, renewable: Arc<Renewable>, acceptor: Option<Arc<Acceptor>>) {
    if config.https.is_some() {
        renewal::keep(renewable, |_| once(&config, acceptor.as_deref())).await;
    }
}

async fn once(config: &Config, acceptor: Option<&Acceptor>) -> Result<(), Failure> {
    let local = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Configuration, error.to_string());
    let Some(https) = &config.https else { return Ok(()) };
    let files = config.https_identity();
    let csr = identity::certificate_request("rssh", &files.key).map_err(|error| local(&error))?;
    let more = Renew {
        https_csr: Some(csr),
        ..Renew::default()
    };
    let renewed = renewal::renew(&https.url, None, &config.identity(), more).await?;
    pki::keep_trust(&config.trust(), &renewed.trust).map_err(|error| local(&error))?;
    if let Some(pem) = renewed.https_certificate {
        renewal::replace(&files, &pem)?;
        if let Some(acceptor) = acceptor {
            acceptor.reload(config).map_err(|error| local(&error))?;
        }
    }
    Ok(())
}
