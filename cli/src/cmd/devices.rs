//! `rssh devices`: what the user may open something on.

use rssh_proto::Failure;
use rssh_proto::duration::Span;
use rssh_proto::payload::{DeviceInfo, Operation};

use crate::args::{Common, DevicesArgs, SelectorArgs};
use crate::cmd::identify;
use crate::cmd::watch::{self, Listing};
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::output::{self, DeviceObject, EventObject};
use crate::request::Answer;
use crate::table;
use crate::watch::Event;

/// Runs the command.
///
/// # Errors
/// The named failure.
pub async fn run(common: &Common, args: &DevicesArgs) -> Result<(), Error> {
    if args.watch {
        return watch::follow(common, Devices(&args.selector), args.every, args.json).await;
    }
    let (profile, tls) = identify(common).await?;
    let mut control = Control::start(&profile, tls);
    let devices = list(&mut control, args.timeout).await;
    control.leave().await;
    let devices = devices?;
    Known::of(&profile).listed_devices(devices.iter().map(|info| &info.device));
    let devices = selected(devices, &args.selector);
    if args.json {
        return devices
            .iter()
            .try_for_each(|device| output::json(&DeviceObject::from(device)));
    }
    if devices.is_empty() {
        if !common.quiet {
            output::remark(NONE);
        }
        return Ok(());
    }
    output::data(&table::devices(&devices, table::width()))
}

const NONE: &str = "no devices that you may open something on";

/// Asks for the devices, in the order of their names.
pub(super) async fn list(control: &mut Control, timeout: Span) -> Result<Vec<DeviceInfo>, Failure> {
    let mut ask = control.ask(Operation::Devices, timeout);
    match control.carry(&mut ask, |_, _| {}).await? {
        Answer::Devices(mut devices) => {
            devices.sort_by(|a, b| a.device.cmp(&b.device));
            Ok(devices)
        }
        _ => Err(Failure::new(
            rssh_proto::FailureKind::Internal,
            "the answer to a list of devices was none",
        )),
    }
}

/// Those that have the tags.
pub(super) fn selected(mut devices: Vec<DeviceInfo>, selector: &SelectorArgs) -> Vec<DeviceInfo> {
    devices.retain(|info| selector.tags.iter().all(|tag| tag.is_in(&info.tags)));
    devices
}

/// The devices, watched.
struct Devices<'a>(&'a SelectorArgs);

impl Listing for Devices<'_> {
    type Item = DeviceInfo;

    async fn list(&self, control: &mut Control, patience: Span) -> Result<Vec<DeviceInfo>, Failure> {
        list(control, patience).await
    }

    fn shown(&self, devices: Vec<DeviceInfo>, known: &Known) -> Vec<DeviceInfo> {
        known.listed_devices(devices.iter().map(|info| &info.device));
        selected(devices, self.0)
    }

    fn table(&self, devices: &[DeviceInfo], width: usize) -> String {
        match devices {
            [] => format!("{NONE}\n"),
            _ => table::devices(devices, Some(width)),
        }
    }

    fn line(&self, info: &DeviceInfo) -> String {
        format!("{} {}", info.device, table::presence(info.presence))
    }

    fn json(&self, event: Event, info: &DeviceInfo) -> Result<(), Error> {
        output::json(&EventObject::new(event, DeviceObject::from(info)))
    }
}
