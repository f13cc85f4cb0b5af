//! Builds the payload program, which is a workspace of its own and linked for a machine without an operating
//! system, into `OUT_DIR`, for `src/image.rs` to embed.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// Not the default relocation model: the program is linked to a fixed address. No red zone: an interrupt's frame is
/// pushed right below the interrupted stack pointer (see payload/src/gate.rs).
const RUSTFLAGS: [&str; 2] = ["-Crelocation-model=static", "-Cno-redzone=yes"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("guest");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let target = std::env::var("HOST")?;
    if !target.starts_with("x86_64-") {
        return Err(format!("guests of toll-vmm are x86-64 programs; this machine is {target}").into());
    }
    for sources in [
        "src",
        "Cargo.toml",
        "payload/src",
        "payload/Cargo.toml",
        "payload/Cargo.lock",
        "payload/build.rs",
        "payload/link.ld",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(sources).display());
    }
    println!("cargo::rerun-if-changed={}", root.with_file_name("guest-abi").join("src").display());
    println!("cargo::rerun-if-changed={}", root.join("../../third-party/smoltcp/src").display());

    // The payload is always an optimised one: a debug build of the VMM shall not change what the guest does.
    let target_dir = out.join("payload");
    let mut cargo = Command::new(std::env::var("CARGO")?);
    cargo.args(["build", "--release", "--locked", "--target", &target, "--manifest-path"]);
    cargo.arg(root.join("payload/Cargo.toml")).arg("--target-dir").arg(&target_dir);
    // What the outer cargo (or clippy) is told about flags, wrappers, profiles and targets is not meant for it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let foreign =
            ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_"].iter().any(|prefix| text.starts_with(prefix));
        let flags = matches!(
            &*text,
            "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "CARGO_MAKEFLAGS" | "MAKEFLAGS"
        );
        if foreign || flags {
            cargo.env_remove(&name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the payload program could not be built: {status}").into());
    }
    let programs = target_dir.join(&target).join("release");
    for (variable, name) in [("TOLL_PAYLOAD", "toll-payload"), ("TOLL_SELF_TEST", "self-test")] {
        println!("cargo::rustc-env={variable}={}", programs.join(name).display());
    }
    Ok(())
}
