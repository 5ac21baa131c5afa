//! What the broker takes for each device that idles on its one connection.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rssh_serverd::config::Config;

use super::control::fleet::Registrar;
use super::inside::{Inside, say, told};
use super::memory::{self, KIB};
use super::results::{Figure, Reach, number};
use super::rig::Rig;
use crate::Lab;
use crate::component::Record;
use crate::place::Place;

/// How many devices there are.
const DEVICES: u32 = 1000;
/// How long the broker has to come to rest.
const RESTS: Duration = Duration::from_secs(3);

/// The devices, which are a process of their own.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// The lab's directory, as programs in it see it
    #[arg(long)]
    dir: PathBuf,
    /// How many there are
    #[arg(long)]
    devices: u32,
}

/// Enrols devices and says so; connects them once told to, and says so; keeps them until told to end.
///
/// # Errors
/// When one of them does not reach the broker.
pub fn serve(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let keys = args.dir.join("idle");
        std::fs::create_dir_all(&keys)?;
        let mut registrar = Registrar::open(Config::load(&args.dir.join("servers/s1/admin.toml"))?, &keys).await?;
        let mut enrolled = Vec::new();
        for n in 1..=args.devices {
            enrolled.push(registrar.enrol(&format!("idle-{n}")).await?);
        }
        say("enrolled")?;
        told().await?;
        let mut devices = Vec::new();
        for device in enrolled {
            devices.push(registrar.connect_device(device).await?);
        }
        say("connected")?;
        told().await
    })
}

/// Measures the growth of mosquitto: once with what it knows of devices, and then with their sessions.
///
/// # Errors
/// When the devices do not come up.
pub fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    let lab = &rig.lab;
    let before = taken(lab)?;
    let own = lab.programs().path("rssh-bench");
    let mut command = lab.command(&Place::Core, &[&own.to_string_lossy(), "idle", "--dir"]);
    command.arg(lab.dir().mounted_at());
    command.args(["--devices", &DEVICES.to_string()]);
    let mut devices = Inside::start(command)?;
    let mut comes = |wanted: &str| -> Result<[f64; 2]> {
        let said = devices.hear()?;
        ensure!(said == wanted, "the devices are not {wanted}: {said}");
        thread::sleep(RESTS);
        let taken = taken(lab)?;
        devices.go_on()?;
        Ok(taken)
    };
    let known = comes("enrolled")?;
    let connected = comes("connected")?;
    drop(devices);
    let each = |now: f64, then: f64| (now - then) / f64::from(DEVICES) / KIB;
    Ok(vec![
        Figure::amount(
            "broker_kib_per_session",
            Reach::None,
            &[each(connected[0], known[0])],
            format!(
                "KiB that mosquitto's PSS grows by for each of {DEVICES} devices that are connected over TLS with certificates \
                 of their own, have subscribed to their orders and do nothing; {} more for knowing each at all, connected or \
                 not; beside it the kernel's, for both ends of the connection",
                number(each(known[0], before[0]))
            ),
        )
        .against(each(connected[1], known[1])),
    ])
}

/// What mosquitto and the kernel take now.
fn taken(lab: &Lab) -> Result<[f64; 2]> {
    let broker = Record::read(lab.dir(), "mosquitto").context("there is no mosquitto")?;
    Ok([memory::pss(broker.process)?, memory::kernels()?])
}
