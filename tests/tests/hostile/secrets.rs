//! Files that only their owner may read.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::{lab, open};

/// Calls `look` for each file below `dir`.
fn each_file(dir: &Path, look: &mut impl FnMut(PathBuf)) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() && !path.ends_with("postgres") && !path.ends_with("ns") {
            each_file(&path, look);
        } else if kind.is_file() {
            look(path);
        }
    }
}

#[test]
fn every_key_and_every_name_is_for_its_owner_only() {
    let lab = lab();
    open(&lab, "niaj", "device-22", &["--new"]);
    let mut keys = 0;
    let mut maps = 0;
    let mut names = 0;
    each_file(lab.dir(), &mut |path| {
        let Ok(text) = fs::read_to_string(&path) else {
            return;
        };
        let map = path.ends_with("maps/keys-current.map") || path.ends_with("maps/keys-previous.map");
        let master = path.ends_with("name-master") || path.ends_with("name.key");
        let name = path.parent().is_some_and(|dir| dir.ends_with("rssh/names"));
        let key = text.contains("PRIVATE KEY-----");
        if key || master || map || name {
            let file = fs::metadata(&path).unwrap();
            assert_eq!(file.mode() & 0o077, 0, "others may read {}", path.display());
            assert_eq!(file.uid(), 0, "{}", path.display());
        }
        keys += u32::from(key || master);
        maps += u32::from(map);
        names += u32::from(name);
    });
    let devices = lab.options().devices;
    assert!(keys > 3 * devices, "{keys}");
    assert_eq!(maps, 2);
    assert!(names > 0);
}

#[test]
fn sockets_that_give_orders_are_for_their_owner_only() {
    let lab = lab();
    let mut private = vec![lab.dir().join("router/haproxy/admin.sock")];
    for server in ["s1", "s2"] {
        private.push(lab.dir().join(format!("servers/{server}/state/run/control.sock")));
    }
    for path in private {
        let socket = fs::metadata(&path).unwrap();
        assert_eq!(socket.mode() & 0o077, 0, "others may use {}", path.display());
    }
}
