//! `rssh login`: the first log-in of a user at an installation, with a one-time token.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rssh_mqtt::https::Client;
use rssh_mqtt::{ask, identity};
use rssh_proto::enrolment::{EnrolUser, UserEnrolled};

use crate::args::{Common, LoginArgs};
use crate::error::Error;
use crate::files;
use crate::output;
use crate::profile;

/// Runs the command. It can be repeated with the same token when it failed half-way.
///
/// # Errors
/// When the token is refused, or the profile's directory cannot be written.
pub async fn run(common: &Common, args: &LoginArgs) -> Result<(), Error> {
    let path = profile::path(common.profile.as_deref())?;
    let directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let local = |what: &dyn std::fmt::Display| Error::configuration(what.to_string());
    let token = ask::enrolment_token(args.token_file.as_deref())
        .map_err(|error| Error::usage(format!("there is no token: {error}")))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|error| Error::configuration(format!("cannot make {}: {error}", directory.display())))?;
    let asked = EnrolUser {
        token: token.secret(),
        csr: identity::certificate_request("rssh", &directory.join("user.key")).map_err(|error| local(&error))?,
    };
    let client = Client::pinned(args.url.clone(), token.authority).map_err(|error| local(&error))?;
    let enrolled: UserEnrolled = client.post("/v1/enrol/user", &asked).await?;
    for (name, text) in [
        ("user.pem", &enrolled.certificate),
        ("servers-ca.pem", &enrolled.servers_ca),
    ] {
        rssh_mqtt::files::write_public(&directory.join(name), text.as_bytes()).map_err(|error| local(&error))?;
    }
    let text = render(&enrolled)?;
    files::replace(&path, text.as_bytes(), 0o600)
        .map_err(|error| Error::configuration(format!("cannot write {}: {error}", path.display())))?;
    output::data(&format!("{}\n", enrolled.user))?;
    if !common.quiet {
        output::remark(&format!(
            "you are {} here; the profile is {}; try: rssh doctor",
            enrolled.user,
            path.display()
        ));
    }
    Ok(())
}

fn render(enrolled: &UserEnrolled) -> Result<String, Error> {
    let brokers = serde_json::to_string(&enrolled.brokers).map_err(|error| Error::internal(error.to_string()))?;
    Ok(format!(
        "# Written by rssh login.\n\
         user = \"{}\"\n\
         url = \"{}\"\n\
         brokers = {brokers}\n\
         lb = {}\n\
         ca = \"servers-ca.pem\"\n\
         cert = \"user.pem\"\n\
         key = \"user.key\"\n",
        enrolled.user,
        enrolled.url,
        serde_json::to_string(&enrolled.lb).map_err(|error| Error::internal(error.to_string()))?,
    ))
}
