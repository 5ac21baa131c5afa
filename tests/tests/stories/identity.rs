//! A server's id has one holder.

use std::process::Output;

use rssh_lab::place::Place;

use crate::{all_of, lab};

/// Starts a second daemon for server 1 with a shell command before it.
fn second(lab: &rssh_lab::Lab, prepare: &str) -> Output {
    let dir = lab.dir().inside("servers/s1");
    let serverd = lab.programs().path("rssh-serverd");
    let script = format!(
        "cd {dir} && {prepare} && exec timeout 20 {} run --config second.toml",
        serverd.display()
    );
    lab.command(&Place::Server(1), &["sh", "-c", &script]).output().unwrap()
}

#[test]
fn a_second_holder_of_an_id_refuses_to_run_and_names_the_first() {
    let lab = lab();
    let status = lab.status().unwrap();
    let first = status
        .components
        .iter()
        .find(|component| component.name == "serverd-1")
        .unwrap();
    let pid = first.pid.unwrap().to_string();

    let same = second(&lab, "cp serverd.toml second.toml");
    assert!(!same.status.success());
    assert!(
        all_of(&same).contains("another rssh-serverd runs in"),
        "{}",
        all_of(&same)
    );

    let copied = second(
        &lab,
        "rm -rf copy && cp -r state copy && sed 's:/state\":/copy\":' serverd.toml > second.toml",
    );
    assert!(!copied.status.success());
    let said = all_of(&copied);
    assert!(
        said.contains("the server id s1 is held by") && said.contains(&pid),
        "{said}"
    );
    assert_eq!(
        said.lines().filter(|line| line.starts_with("rssh-serverd:")).count(),
        1,
        "{said}"
    );
}
