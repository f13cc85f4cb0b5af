//! Machines with VT-x or AMD-V, emulated in software: what they boot, how, and what they say on their serial line.
//!
//! An emulated machine runs `e2e/hardware/init`, which prints each step between `TOLL BEGIN name time` and
//! `TOLL END name status`, and `TOLL DONE` at last.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use toll_protocol::result::CampaignResult;

use crate::documents;

use crate::machine::wait_for;
use crate::programs;

/// An emulator sometimes hangs while a kernel boots on it (QEMU delivers a vector twice, or the calibration of the time
/// stamp counter never ends): so many boots are tried. What has begun is never tried again.
const BOOTS: u32 = 3;
/// A kernel is up after 5 to 50 s where nobody else computes.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// All steps together take some 2 minutes there.
const STEPS_LIMIT: Duration = Duration::from_secs(900);

/// What emulates a machine.
#[derive(Debug, Clone, Copy)]
pub enum Emulator {
    /// Bochs, with this CPU.
    Bochs(&'static str),
    /// QEMU's translator, with this CPU.
    Qemu(&'static str),
}

/// An emulated machine.
#[derive(Debug, Clone, Copy)]
pub struct Hardware {
    /// Its directory's name.
    pub name: &'static str,
    /// What emulates it.
    pub emulator: Emulator,
    /// KVM's module.
    pub module: &'static str,
    /// Options of that module.
    pub options: &'static [&'static str],
    /// Steps that it does, of those in `e2e/hardware/init`; none means all.
    pub steps: &'static [&'static str],
}

/// What a machine said.
#[derive(Debug)]
pub struct Said(String);

/// Why no machine can be emulated here, if none can.
pub fn lacking() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| {
        std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .any(|folder| folder.join(program).exists())
    };
    // As in e2e/test, but for apt-get, by which that installs them.
    let needs = [
        ("bochs", "bochs"),
        ("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"),
        ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
        ("/usr/share/vgabios/vgabios.bin", "vgabios"),
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("grub-mkrescue", "grub-common"),
        ("/usr/lib/grub/i386-pc/moddep.lst", "grub-pc-bin"),
        ("xorriso", "xorriso"),
        ("mformat", "mtools"),
        ("busybox", "busybox"),
        ("kmod", "kmod"),
        ("cpio", "cpio"),
        ("lz4", "lz4"),
        ("strip", "binutils"),
        ("apt-get", "apt, which downloads Debian's cloud kernel"),
    ];
    needs.into_iter().find(|(program, _)| !there(program)).map(|(_, package)| package)
}

/// The folder of all that machines boot: made when first asked for.
fn images() -> Result<&'static Path> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| make_images().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|why| anyhow::anyhow!("there is nothing to boot: {why}"))
}

fn make_images() -> Result<PathBuf> {
    let debug = programs::directory()?;
    let target = debug.parent().context("the programs stand in no target directory")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The VMM is what takes long in an emulated machine, and several times as long if it is not optimised. To optimise the
    // service as well would cost more minutes of building than it saves.
    let cargo = |arguments: &[&str]| -> Result<Vec<u8>> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(arguments).args(["--profile", "emulated", "--quiet", "--target-dir"]).arg(target);
        let output = cargo.current_dir(root).stderr(Stdio::inherit()).output().context("starting cargo")?;
        ensure!(output.status.success(), "cargo {arguments:?}: {}", output.status);
        Ok(output.stdout)
    };
    cargo(&["build", "-p", "toll-vmm", "-p", "toll-endpoint", "--bins"])?;
    let messages =
        cargo(&["test", "-p", "toll-vmm", "--test", "guest", "--no-run", "--message-format", "json"])?;
    let guests = String::from_utf8(messages)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "guest")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no test program `guest`")?;
    let work = target.join("hardware");
    let emulated = target.join("emulated");
    let output = Command::new(root.join("hardware/image"))
        .arg(&work)
        .arg(guests)
        .args([debug.join("toll"), debug.join("toll-agent")])
        .args([emulated.join("toll-vmm"), emulated.join("toll-endpoint")])
        .output()
        .context("starting e2e/hardware/image")?;
    ensure!(output.status.success(), "e2e/hardware/image: {}", String::from_utf8_lossy(&output.stderr));
    Ok(work)
}

/// An emulator that runs; it ends with this value.
struct Running {
    emulator: Child,
    serial: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended needs no signal.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

impl Hardware {
    /// Boots the machine and returns what it said, up to its last word.
    ///
    /// # Errors
    /// When it can't be started, does not boot in [`BOOTS`] tries, or stands still later.
    pub fn run(&self) -> Result<Said> {
        let directory = images()?.join(self.name);
        fs::create_dir_all(&directory)?;
        let mut running = self.boot(&directory)?;
        for boot in 2..=BOOTS {
            match running.says("TOLL BEGIN load", BOOT_LIMIT) {
                Ok(()) => break,
                Err(why) => eprintln!("{}: boot {boot} of {BOOTS}, since {why:#}", self.name),
            }
            drop(running);
            running = self.boot(&directory)?;
        }
        let said = running.says("TOLL DONE", STEPS_LIMIT);
        let text = String::from_utf8_lossy(&fs::read(&running.serial)?).replace('\r', "");
        said.with_context(|| format!("{} said:\n{text}", self.name))?;
        Ok(Said(text))
    }

    fn boot(&self, directory: &Path) -> Result<Running> {
        let images = images()?;
        let serial = directory.join("serial");
        // That of an earlier boot.
        match fs::remove_file(&serial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let options = self.options.iter().map(|option| format!(" toll.option={option}"));
        let steps = self.steps.iter().map(|step| format!(" toll.step={step}"));
        let words = format!(
            "console=ttyS0,115200 quiet panic=-1 mitigations=off tsc=reliable toll.kvm={}{}",
            self.module,
            options.chain(steps).collect::<String>()
        );
        let mut command = match self.emulator {
            Emulator::Qemu(cpu) => qemu(cpu, images, &serial, &words),
            Emulator::Bochs(model) => bochs(model, images, directory, &words)?,
        };
        command.current_dir(directory);
        let parent = nix::unistd::getpid();
        let dies_with_the_test = move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // It may have died before.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        };
        // SAFETY: between fork and exec the child makes two system calls.
        unsafe { command.pre_exec(dies_with_the_test) };
        let emulator = command.spawn().with_context(|| format!("starting {:?}", self.emulator))?;
        Ok(Running { emulator, serial })
    }
}

impl Running {
    /// Waits until a line of the serial line begins with `word`.
    fn says(&mut self, word: &str, limit: Duration) -> Result<()> {
        let began = Instant::now();
        wait_for(&format!("`{word}`"), limit, || {
            let said = fs::read(&self.serial).unwrap_or_default();
            if String::from_utf8_lossy(&said).lines().any(|line| line.starts_with(word)) {
                return Ok(Some(()));
            }
            match self.emulator.try_wait()? {
                Some(status) => bail!("the emulator ended after {:?} ({status})", began.elapsed()),
                None => Ok(None),
            }
        })
    }
}

/// More CPUs, `-M microvm` or one thread hang more often.
fn qemu(cpu: &str, images: &Path, serial: &Path, words: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "1", "-m", "2048"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial"]);
    command.arg(format!("file:{}", serial.display())).arg("-kernel").arg(images.join("vmlinuz"));
    command.arg("-initrd").arg(images.join("initrd")).args(["-append", words]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Bochs boots a CD with GRUB. It wants a terminal.
fn bochs(model: &str, images: &Path, directory: &Path, words: &str) -> Result<Command> {
    let grub = directory.join("iso/boot/grub");
    fs::create_dir_all(&grub)?;
    for file in ["vmlinuz", "initrd"] {
        fs::copy(images.join(file), directory.join("iso/boot").join(file))?;
    }
    let words = format!("{words} nokaslr rcupdate.rcu_expedited=1 audit=0");
    fs::write(grub.join("grub.cfg"), format!("linux /boot/vmlinuz {words}\ninitrd /boot/initrd\nboot\n"))?;
    let mut rescue = Command::new("grub-mkrescue");
    rescue.args(["-o", "cd.iso", "iso", "--", "-volid", "TOLL"]).current_dir(directory);
    let output = rescue.output().context("starting grub-mkrescue")?;
    ensure!(output.status.success(), "grub-mkrescue: {}", String::from_utf8_lossy(&output.stderr));
    let template = include_str!("../hardware/bochsrc");
    fs::write(directory.join("bochsrc"), template.replace("MODEL", model))?;
    // Debian's is built with a debugger, which waits for a command.
    fs::write(directory.join("commands"), "c\n")?;
    let terminal = openpty(None, None).context("a terminal for Bochs")?;
    // Another emulator that is started meanwhile shall not hold it.
    fcntl(&terminal.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    std::thread::spawn(move || watch(terminal.master));
    let mut command = Command::new("bochs");
    command.args(["-q", "-f", "bochsrc", "-rc", "commands"]).env("TERM", "xterm");
    let screen = || terminal.slave.try_clone().map(Stdio::from);
    command.stdin(screen()?).stdout(screen()?).stderr(screen()?);
    Ok(command)
}

/// Reads what Bochs says until it has gone. A Bochs with a debugger draws on another terminal, whose name it says, and would
/// wait for a reader once that is full.
fn watch(terminal: OwnedFd) {
    for line in BufReader::new(fs::File::from(terminal)).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let name = line.split_once("Bochs connected to screen \"").and_then(|(_, rest)| rest.split_once('"'));
        if let Some((name, _)) = name {
            let name = name.to_owned();
            std::thread::spawn(move || drain(&name));
        }
    }
}

/// Reads what is drawn on a terminal until its owner has gone: nobody looks at it.
fn drain(name: &str) {
    let terminal = fs::File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name);
    let Ok(mut terminal) = terminal else { return };
    // As it comes, not in lines.
    if let Ok(mut settings) = tcgetattr(&terminal) {
        cfmakeraw(&mut settings);
        let _ = tcsetattr(&terminal, SetArg::TCSANOW, &settings);
    }
    let mut bytes = [0; 4096];
    while terminal.read(&mut bytes).is_ok_and(|length| length > 0) {}
}

impl Said {
    /// What was printed in a step, whose status has to be 0.
    ///
    /// # Errors
    /// When it is another, with what was printed.
    pub fn step(&self, name: &str) -> Result<&str> {
        self.step_with(name, 0)
    }

    /// What was printed in a step that ended with `expected`.
    ///
    /// # Errors
    /// When it ended with another status, with what was printed.
    pub fn step_with(&self, name: &str, expected: i32) -> Result<&str> {
        let (begin, end) = (format!("TOLL BEGIN {name} "), format!("\nTOLL END {name} "));
        let (_, rest) = self.0.split_once(&begin).with_context(|| format!("{name} never began"))?;
        let (printed, rest) =
            rest.split_once(&end).with_context(|| format!("{name} never ended:\n{rest}"))?;
        let status = rest.lines().next().unwrap_or_default();
        // The rest of the line is when it began.
        let printed = printed.split_once('\n').map_or("", |(_, printed)| printed);
        ensure!(status == expected.to_string(), "{name} ended with {status}:\n{printed}");
        Ok(printed)
    }

    /// The result of its campaign.
    ///
    /// # Errors
    /// When there is none.
    pub fn result(&self) -> Result<CampaignResult> {
        let mut unpack = Command::new("sh");
        unpack.args(["-c", "base64 -d | gzip -dc"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = unpack.spawn().context("starting gzip")?;
        let mut input = child.stdin.take().context("gzip has an input")?;
        let packed = self.step("result")?.to_owned();
        let writer = std::thread::spawn(move || input.write_all(packed.as_bytes()));
        let output = child.wait_with_output()?;
        // It fails only where the reader has failed.
        let _ = writer.join();
        ensure!(output.status.success(), "the result can't be unpacked: {}", output.status);
        documents::result(&output.stdout)
    }
}
