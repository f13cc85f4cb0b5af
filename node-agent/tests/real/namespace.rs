//! Network namespaces without names: they end with the descriptors and processes that hold them.

use std::fs::{self, File};
use std::net::Ipv4Addr;

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

/// Becomes able to make network namespaces: as root, or in a user namespace of its own. To be called before there
/// are threads.
///
/// # Errors
/// Why it can't, in a few words.
pub fn become_root() -> Result<(), String> {
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    if !user.is_root() {
        unshare(CloneFlags::CLONE_NEWUSER)
            .map_err(|error| format!("no root and no user namespace: {error}"))?;
        let map = |file: &str, line: String| {
            fs::write(file, line).map_err(|error| format!("the user namespace can't be mapped: {error}"))
        };
        map("/proc/self/setgroups", "deny".to_owned())?;
        map("/proc/self/uid_map", format!("0 {user} 1"))?;
        map("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    // Only to see whether it can be done, on a thread that ends with it.
    std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET))
        .join()
        .map_err(|_| "the thread for a namespace panicked".to_owned())?
        .map_err(|error| format!("no network namespaces: {error}"))
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace(pub File);

impl Namespace {
    /// A new one.
    pub fn new() -> Self {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            Self(File::open("/proc/thread-self/ns/net").expect("the namespace's file"))
        })
        .join()
        .expect("the thread ends")
    }

    /// Runs `work` in it, on a thread and a runtime of its own.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(work())
            });
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `work` in it with a netlink socket.
    pub fn with_netlink<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> T + Send) -> T {
        self.run(async || {
            let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
            let connection = tokio::spawn(connection);
            let done = work(handle).await;
            connection.abort();
            done
        })
    }

    /// Makes a veth pair: `name` here, `peer` in `other`.
    pub fn join(&self, name: &str, other: &Self, peer: &str) {
        use std::os::fd::AsRawFd;
        let descriptor = other.0.as_raw_fd();
        self.with_netlink(async move |handle| {
            // Both ends begin here, so the one that moves may get its name on the way only.
            handle.link().add(LinkVeth::new(name, "moving").build()).execute().await.expect("a veth pair");
            let index = crate::links::index(&handle, "moving").await.expect("the peer");
            let moved = LinkUnspec::new_with_index(index).name(peer).setns_by_fd(descriptor).build();
            handle.link().set(moved).execute().await.expect("the peer moves");
        });
    }

    /// Gives a link an address and sets it up.
    pub fn address(&self, name: &str, address: Ipv4Addr) {
        self.with_netlink(async move |handle| {
            let index = crate::links::index(&handle, name).await.expect("the link");
            handle.address().add(index, address.into(), 24).execute().await.expect("an address");
            handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("up");
        });
    }

    /// Names of all links, with their MTU and the name of what they are a port of.
    pub fn links(&self) -> Vec<(String, u32, Option<String>)> {
        self.with_netlink(async |handle| crate::links::all(&handle).await)
    }

    /// Sets a link up.
    pub fn set_up(&self, name: &str) {
        self.with_netlink(async move |handle| {
            let index = crate::links::index(&handle, name).await.expect("the link");
            handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("up");
        });
    }

    /// Makes a bridge, which is up and begins to forward at once.
    pub fn bridge(&self, name: &str) {
        self.with_netlink(async move |handle| {
            let bridge = LinkMessageBuilder::<LinkBridge>::new(name).forward_delay(0).up().build();
            handle.link().add(bridge).execute().await.expect("a bridge");
        });
    }

    /// Puts a link on a bridge, and sets it up.
    pub fn enslave(&self, name: &str, bridge: &str) {
        self.with_netlink(async move |handle| {
            let port = crate::links::index(&handle, name).await.expect("the port");
            let bridge = crate::links::index(&handle, bridge).await.expect("the bridge");
            let joined = LinkUnspec::new_with_index(port).controller(bridge).up().build();
            handle.link().set(joined).execute().await.expect("a port of the bridge");
        });
    }

    /// Links, IPv4 addresses and IPv4 routes, a line each.
    pub fn state(&self) -> Vec<String> {
        self.with_netlink(async |handle| crate::links::state(&handle).await)
    }
}
