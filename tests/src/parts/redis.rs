//! Redis: in memory only, reached by unix socket only.

use std::path::Path;

use anyhow::Result;

use crate::component::Component;
use crate::files;
use crate::place::Place;
use crate::ready::Ready;
use crate::setup::Setup;

const SOCKET: &str = "redis/redis.sock";

/// The registry as a URL.
pub fn url(setup: &Setup) -> String {
    format!("redis+unix://{}", setup.root.inside(SOCKET))
}

/// Makes its directory.
///
/// # Errors
/// When that cannot be made.
pub fn prepare(root: &Path) -> Result<()> {
    files::make_dir(&root.join("redis"))
}

/// The server.
pub fn component(setup: &Setup) -> Component {
    let socket = setup.root.inside(SOCKET);
    let dir = setup.root.inside("redis");
    Component::new(
        "redis",
        Place::Core,
        &[
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            &socket,
            "--unixsocketperm",
            "700",
            "--dir",
            &dir,
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ],
    )
    .address(&socket)
    .ready(Ready::Unix(SOCKET.to_owned()))
}
