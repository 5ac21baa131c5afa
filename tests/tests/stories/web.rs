//! A device's web page, for whoever gets its URL.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use rssh_lab::Action;
use rssh_lab::place::{LB, LB_BEARER, Place};
use rssh_lab::process::PATIENTLY;

use crate::{lab, said, within};

const DEVICE: u32 = 21;
const PAGE: &str = "the page of device-21";

/// Serves the page once, to the first request that comes.
fn serve(listener: &TcpListener) {
    let (mut stream, _) = loop {
        // An open looks whether somebody is there; it asks for no page.
        let (stream, from) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        if request.starts_with("GET / HTTP/1.1") {
            break (stream, from);
        }
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n",
        PAGE.len()
    );
    write!(stream, "{head}\r\n{PAGE}").unwrap();
}

#[test]
fn a_devices_web_page_opens_by_its_url_for_one_who_has_nothing_else() {
    let lab = lab();
    let config = lab.dir().join(format!("devices/device-{DEVICE}/agentd.toml"));
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[targets]\nallow = [\"22\", \"80\"]\n")).unwrap();
    lab.ctl(Action::Restart, &format!("agentd-{DEVICE}")).unwrap();
    let listener = lab
        .networks()
        .inside(&Place::Device(DEVICE), || TcpListener::bind((Ipv4Addr::LOCALHOST, 80)))
        .unwrap()
        .unwrap();
    let served = thread::spawn(move || serve(&listener));

    let url = said(&lab, "olivia", &["rssh", "web", "device-21", "--print"]);
    let url = url.trim();
    // Somebody with curl and the authority that a browser would know; DNS is what the lab has none of.
    let host = url
        .strip_prefix("https://")
        .and_then(|rest| rest.split(':').next())
        .unwrap();
    let resolve = format!("{host}:{LB_BEARER}:{LB}");
    let ca = lab.dir().inside("users/alice/home/.config/rssh/servers-ca.pem");
    let visitor = lab.place(Some("alice")).unwrap();
    let mut got = Vec::new();
    within(PATIENTLY, "the page comes", || {
        let argv = [
            "curl",
            "--silent",
            "--fail",
            "--cacert",
            &ca,
            "--resolve",
            &resolve,
            url,
        ];
        got = lab.command(&visitor, &argv).output().unwrap().stdout;
        !got.is_empty()
    });
    assert_eq!(String::from_utf8_lossy(&got), PAGE);
    served.join().unwrap();
    fs::write(&config, text).unwrap();
    lab.ctl(Action::Restart, &format!("agentd-{DEVICE}")).unwrap();
}
