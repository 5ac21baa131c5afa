//! One tunnel from end to end, shown step by step.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cli::report;
use crate::lab::Lab;
use crate::place::{LB, LB_DEVICES, LB_USERS, SITE};
use crate::setup::Options;
use crate::{interrupt, run};

const USER: &str = "alice";
const DEVICE: &str = "device-1";

/// Runs the demonstration in a lab of its own; with `keep` the lab stays.
///
/// # Errors
/// When a step fails.
pub fn run(keep: bool) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix("rssh-demo-").tempdir()?;
    let dir = temporary.path();
    interrupt::guard(dir)?;
    let options = Options::default();
    say(format_args!(
        "A lab with {} servers, {} devices and {} users, in {}",
        options.servers,
        options.devices,
        options.users,
        dir.display()
    ));
    let begin = Instant::now();
    let lab = Lab::up(dir, options, &report)?;
    report("in all: everything is up", begin.elapsed());

    let shown = show(&lab);
    if keep {
        let kept = temporary.keep();
        let lab_program = lab.programs().path("rssh-lab");
        say(format_args!(
            "The lab stays. Use it, and end it:\n\
             \x20   {program} exec --dir {dir} --user {USER} -- bash\n\
             \x20   {program} exec --dir {dir} --user {USER} -- ssh device-2\n\
             \x20   {program} status --dir {dir}\n\
             \x20   {program} ctl --dir {dir} kill serverd-1\n\
             \x20   {program} down --dir {dir}",
            program = lab_program.display(),
            dir = kept.display(),
        ));
        return shown;
    }
    let begin = Instant::now();
    lab.down()?;
    report("torn down: no process is left", begin.elapsed());
    shown
}

fn show(lab: &Lab) -> Result<()> {
    say(format_args!(
        "{USER} asks for a tunnel to {DEVICE}; the device is behind NAT ({SITE}) and has one MQTT connection"
    ));
    let open = timed(
        lab,
        &["rssh", "open", DEVICE, "--json"],
        "opened, and proven by the device's banner",
    )?;
    let tunnel: Value = serde_json::from_str(&open).context("rssh open printed no JSON")?;
    let text = |field: &str| tunnel[field].as_str().unwrap_or_default().to_owned();
    let (server, id) = (text("server"), text("tunnel"));
    println!(
        "            device -> {LB}:{LB_DEVICES} -> {server}, which leased a port; the name that leads there:\n\
         \x20           {} (port {LB_USERS})",
        text("host")
    );

    say(format_args!(
        "Where the time went, from the request on, by the database's clock"
    ));
    for (stage, column) in [
        ("the device acknowledged the order", "answered_at"),
        ("its ssh had landed and claimed a port", "claimed_at"),
        ("the server saw the listener", "active_at"),
    ] {
        let sql = format!("SELECT round(extract(epoch FROM {column} - created_at), 3) FROM tunnels WHERE id = '{id}'");
        let seconds: f64 = lab.psql(&sql)?.trim().parse().context("a stage was not reached")?;
        report(stage, Duration::from_secs_f64(seconds));
    }

    say(format_args!("What the database says: one live lease"));
    println!(
        "            server|port|device|epoch = {}",
        lab.psql(&format!(
            "SELECT server_id, port, device_id, epoch FROM live_leases WHERE tunnel_id = '{id}'"
        ))?
    );

    say(format_args!(
        "{USER} logs in through it: ssh -> rssh proxy -> TLS -> HAProxy -> {server} -> {DEVICE}"
    ));
    let uname = timed(lab, &["ssh", DEVICE, "uname", "-a"], "ssh device-1 uname -a")?;
    println!("            {}", uname.trim());
    ensure!(uname.contains(DEVICE), "that was not {DEVICE}");

    say(format_args!("{USER} closes it"));
    timed(lab, &["rssh", "close", DEVICE], "closed")?;
    println!(
        "            live leases: {}",
        lab.psql(&format!("SELECT count(*) FROM live_leases WHERE tunnel_id = '{id}'"))?
    );
    Ok(())
}

/// Runs a command as the user, shows how long it took, and returns what it wrote.
fn timed(lab: &Lab, argv: &[&str], what: &str) -> Result<String> {
    let place = lab.place(Some(USER))?;
    let mut command: Command = lab.command(&place, argv);
    let begin = Instant::now();
    let out = run::checked(&mut command)?;
    let took: Duration = begin.elapsed();
    report(what, took);
    Ok(out)
}

fn say(line: std::fmt::Arguments<'_>) {
    println!("\n{line}");
}
