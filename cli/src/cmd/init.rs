//! `rssh init`: the user's key, and the request for its certificate.

use std::fs::DirBuilder;
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use dialoguer::Input;
use rssh_mqtt::identity;
use rssh_proto::UserId;

use crate::args::{Common, InitArgs};
use crate::error::Error;
use crate::output;
use crate::profile;

/// Runs the command.
///
/// # Errors
/// When there is no name and nobody to ask, or the directory cannot be written.
pub fn run(common: &Common, args: &InitArgs) -> Result<(), Error> {
    let directory = match &args.dir {
        Some(directory) => directory.clone(),
        None => {
            let profile = profile::path(common.profile.as_deref())?;
            profile.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    let user = match &args.user {
        Some(user) => user.clone(),
        None => ask()?,
    };
    let request = make(&user, &directory)?;
    output::data(&format!("{}\n", request.display()))?;
    if !common.quiet {
        output::remark(&format!(
            "send this file to your administrator, who answers with user.pem, ca.pem and profile.toml for {}",
            directory.display()
        ));
    }
    Ok(())
}

fn ask() -> Result<UserId, Error> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Error::usage(
            "nobody to ask for the user's name; give it with --user NAME",
        ));
    }
    Input::new()
        .with_prompt("Your name, as the administrator will register it")
        .interact_text()
        .map_err(|error| Error::usage(format!("no name was given ({error}); give it with --user NAME")))
}

/// Makes the key unless it is there, and the request; returns where the request is.
fn make(user: &UserId, directory: &Path) -> Result<PathBuf, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| Error::configuration(format!("cannot make {}: {error}", directory.display())))?;
    let request = directory.join("user.csr");
    identity::request_certificate(user.as_str(), &directory.join("user.key"), &request)
        .map_err(|error| Error::configuration(error.to_string()))?;
    Ok(request)
}
