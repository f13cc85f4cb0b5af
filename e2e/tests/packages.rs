//! `e2e/test` on a machine that lacks packages: it installs them or names them, whichever cluster the tests of Kubernetes use.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

/// A folder of programs for a path that has nothing else: what the script itself needs, and `programs` that do nothing
/// but succeed. `id` says that the user is `uid`.
fn path(folder: &Path, uid: u32, programs: &[&str]) {
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a program");
    };
    symlink("/usr/bin/dirname", folder.join("dirname")).expect("a link");
    write("id", &format!("#!/bin/sh\necho {uid}\n"));
    for program in ["cargo"].iter().chain(programs) {
        write(program, "#!/bin/sh\nexit 0\n");
    }
}

/// Runs the script with `path` as its whole path, for a cluster of somebody's or for none.
fn run(path: &Path, cluster: bool) -> Output {
    let mut command = Command::new("/bin/bash");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/test")).env_clear().env("PATH", path);
    if cluster {
        command.env("TOLL_E2E_KUBECONFIG", "/nowhere");
    }
    command.output().expect("bash runs")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn missing_packages_are_named_with_a_cluster_and_without() {
    let folder = tempfile::tempdir().expect("a folder");
    path(folder.path(), 1000, &["kubectl"]);
    for cluster in [false, true] {
        let said = text(&run(folder.path(), cluster));
        assert!(said.contains("leaves out tests of captures: install tshark"), "{cluster}: {said}");
        // What only a cluster of the project's own takes is not asked for with another.
        assert_eq!(said.contains("install etcd-server"), !cluster, "{said}");
    }
}

#[test]
fn missing_packages_are_installed_with_a_cluster_and_without() {
    let folder = tempfile::tempdir().expect("a folder");
    path(folder.path(), 0, &["kubectl", "apt-get", "systemctl"]);
    for cluster in [false, true] {
        let said = text(&run(folder.path(), cluster));
        let installs = said.lines().find(|line| line.starts_with("e2e/test installs:"));
        assert!(installs.is_some_and(|line| line.contains("tshark")), "{cluster}: {said}");
    }
}

#[test]
fn a_cluster_takes_kubectl() {
    let folder = tempfile::tempdir().expect("a folder");
    path(folder.path(), 1000, &[]);
    let output = run(folder.path(), true);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
