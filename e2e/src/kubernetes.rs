//! A real Kubernetes: two nodes on this machine (`e2e/kubernetes/cluster`), or the cluster that
//! `TOLL_E2E_KUBECONFIG` leads to, which has two or more nodes for trials, the image, and no Toll yet.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::dashboards::list;
use crate::machine::wait_for;
use crate::{programs, readme};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Another cluster than our own.
const KUBECONFIG: &str = "TOLL_E2E_KUBECONFIG";
/// The overlay for it, a folder like `manifests/deploy/overlays/two-nodes`.
const OVERLAY: &str = "TOLL_E2E_OVERLAY";
/// The overlay that README.md applies.
const EXAMPLE: &str = "manifests/deploy/overlays/two-nodes";
/// The pods of the orchestrator and of the agents.
pub const ORCHESTRATOR: &str = "app.kubernetes.io/name=toll-orchestrator";
/// See [`ORCHESTRATOR`].
pub const AGENTS: &str = "app.kubernetes.io/name=toll-agent";
/// How long anything that is waited for may take.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The kubeconfig of a cluster that others made, if the tests are to run on that.
fn another() -> Option<PathBuf> {
    std::env::var_os(KUBECONFIG).map(|config| Path::new(ROOT).join(config))
}

/// Why the nodes' own networks and processes are out of reach, if they are.
pub fn anothers_cluster() -> Option<&'static str> {
    another().map(|_| "nodes of another's cluster")
}

/// What a machine lacks to run a cluster.
pub fn no_kubernetes() -> Option<&'static str> {
    if another().is_some() {
        return None;
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| {
        std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .any(|folder| folder.join(program).exists())
    };
    let needs = [
        ("etcd", "etcd-server"),
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("iptables", "iptables"),
        ("ip", "iproute2"),
        ("openssl", "openssl"),
        ("go", "Go, which Kubernetes is built with"),
    ];
    let missing = needs.into_iter().find(|(program, _)| !there(program));
    let plugins = Path::new("/usr/lib/cni/bridge").exists();
    missing.map(|(_, package)| package).or((!plugins).then_some("containernetworking-plugins"))
}

/// A cluster with Toll on it.
pub struct Cluster {
    /// Our own cluster's files; `None` for one that others made.
    state: Option<tempfile::TempDir>,
    overlay: OsString,
    /// An overlay of our own, removed with the cluster.
    _made: Option<tempfile::TempDir>,
}

impl Cluster {
    /// Starts a cluster, or takes the one that is there, and does what README.md tells a user.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up() -> Result<Self> {
        let example = || OsString::from(EXAMPLE);
        let given = std::env::var_os(OVERLAY);
        let overlay = given.map_or_else(example, |overlay| Path::new(ROOT).join(overlay).into());
        let mut cluster = Self { state: None, overlay, _made: None };
        if another().is_none() {
            let image = image()?;
            cluster.state = Some(tempfile::tempdir()?);
            // From here on its end takes down what has come up.
            cluster.script(["up".as_ref(), image.as_os_str()])?;
            let made = cluster.overlay_of_our_own()?;
            cluster.overlay = made.path().into();
            cluster._made = Some(made);
        }
        cluster.deploy()?;
        let hosts = cluster.hosts()?;
        ensure!(hosts.len() >= 2, "trials take two nodes, and can be on {hosts:?} alone");
        Ok(cluster)
    }

    /// Whether it is our own, whose nodes and processes tests may look at.
    pub fn is_our_own(&self) -> bool {
        self.state.is_some()
    }

    /// Our own script, with this cluster's files.
    fn script(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
        let state = self.state.as_ref().context("the cluster is another's")?;
        let mut command = Command::new("e2e/kubernetes/cluster");
        command.current_dir(ROOT).env("TOLL_CLUSTER_STATE", state.path()).args(arguments);
        run(&mut command, None)
    }

    /// `kubectl`, which must succeed; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments, None)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `kubectl`, with `input`, however it ends.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = match (&self.state, another()) {
            (None, Some(config)) => {
                let mut command = Command::new("kubectl");
                command.arg("--kubeconfig").arg(config);
                command
            }
            (state, _) => {
                let mut command = Command::new("e2e/kubernetes/cluster");
                let state = state.as_ref().context("there is no cluster")?;
                command.env("TOLL_CLUSTER_STATE", state.path()).arg("kubectl");
                command
            }
        };
        spawn(command.current_dir(ROOT).args(arguments), input)
    }

    fn deploy(&self) -> Result<()> {
        let commands = readme::commands("Kubernetes")?;
        let images = |command: &str| command.starts_with("manifests/images/") || command.starts_with("ctr ");
        let campaigns = |command: &str| command.contains("campaign");
        let deploying: Vec<&String> =
            commands.iter().filter(|command| !images(command) && !campaigns(command)).collect();
        ensure!(deploying.len() >= 5, "README.md tells no more than {deploying:?}");
        let desk = Desk::new(self)?;
        for command in deploying {
            desk.run(&command.replace(EXAMPLE, self.overlay()?))?;
        }
        self.rolled_out()
    }

    /// Deploys what [`Self::run_as_told`] has removed, into the namespace that it left.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn deploy_again(&self) -> Result<()> {
        self.kubectl(&["apply", "-k", self.overlay()?])?;
        self.rolled_out()
    }

    /// Runs the commands below a heading of manifests/deploy/README.md that contain `part`, for the campaign `test` of
    /// the default namespace.
    ///
    /// # Errors
    /// When there is none, or one fails.
    pub fn run_as_told(&self, heading: &str, part: &str) -> Result<()> {
        let commands = readme::deploy_commands(heading)?;
        let told: Vec<&String> = commands.iter().filter(|command| command.contains(part)).collect();
        ensure!(!told.is_empty(), "{heading} tells no {part}");
        let desk = Desk::new(self)?;
        for command in told {
            let command = command.replace(EXAMPLE, self.overlay()?);
            desk.run(&command.replace("NAMESPACE", "default").replace("NAME", "test"))?;
        }
        Ok(())
    }

    /// Runs the commands of README.md that are about campaigns, on `campaign` instead of the quickstart.
    ///
    /// # Errors
    /// When one fails.
    pub fn apply_as_told(&self, campaign: &str) -> Result<()> {
        let desk = Desk::new(self)?;
        let file = desk.directory.path().join("campaign.yaml");
        std::fs::write(&file, campaign)?;
        let commands = readme::commands("Kubernetes")?;
        let applying: Vec<&String> = commands.iter().filter(|command| command.contains("campaign")).collect();
        ensure!(!applying.is_empty(), "README.md applies no campaign");
        for command in applying {
            desk.run(&command.replace("manifests/campaigns/quickstart.yaml", "campaign.yaml"))?;
        }
        Ok(())
    }

    /// The example, with the ledgers in the cluster's own files: a node of our cluster has this machine's folders.
    fn overlay_of_our_own(&self) -> Result<tempfile::TempDir> {
        let state = self.state.as_ref().context("the cluster is another's")?;
        let made = tempfile::tempdir_in(Path::new(ROOT).join("target"))?;
        let ledgers = state.path().join("ledgers");
        let text = format!(
            "resources: [../../manifests/deploy/overlays/two-nodes]\npatches:\n  - target: {{kind: Deployment, name: \
             toll-orchestrator}}\n    patch: |\n      - {{op: replace, path: \
             /spec/template/spec/volumes/0/hostPath/path, value: {}}}\n",
            ledgers.display()
        );
        std::fs::write(made.path().join("kustomization.yaml"), text)?;
        Ok(made)
    }

    fn overlay(&self) -> Result<&str> {
        self.overlay.to_str().context("the overlay's path is UTF-8")
    }

    /// Waits until agents and orchestrator are ready.
    ///
    /// # Errors
    /// When they don't get so.
    pub fn rolled_out(&self) -> Result<()> {
        for what in ["daemonset/toll-agent", "deployment/toll-orchestrator"] {
            self.kubectl(&["-n", "toll", "rollout", "status", what, "--timeout=90s"])?;
        }
        Ok(())
    }

    /// Applies a document.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, document: &str) -> Result<()> {
        let output = self.try_kubectl(&["apply", "-f", "-"], Some(document))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// An object.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A campaign, once `condition` holds for it.
    ///
    /// # Errors
    /// When it never does.
    pub fn campaign(&self, name: &str, limit: Duration, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        wait_for(&format!("campaign {name}"), limit, || {
            last = self.get(&["campaign", name])?;
            Ok(condition(&last).then(|| last.clone()))
        })
        .with_context(|| format!("{:#}", last["status"]))
    }

    /// The document of a campaign's result, by the HTTP API of the orchestrator.
    ///
    /// # Errors
    /// When there is none.
    pub fn result(&self, id: &str) -> Result<Value> {
        if self.is_our_own() {
            let service = "/api/v1/namespaces/toll/services/toll-orchestrator:http/proxy";
            let text = self.kubectl(&["get", "--raw", &format!("{service}/api/v1/campaigns/{id}/result")])?;
            return Ok(serde_json::from_str(&text)?);
        }
        // Another's API server may be asked by a name, which its proxy hands on and the orchestrator does not have.
        let pod = ["-n", "toll", "exec", "deployment/toll-orchestrator", "--"];
        let output =
            self.try_kubectl(&[&pod[..], &["toll", "results", id, "--format", "json"]].concat(), None)?;
        // Its exit code tells of gates.
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The network namespace of a node of our own cluster, by its file.
    ///
    /// # Errors
    /// When the cluster is another's.
    pub fn network_of_a_node(&self) -> Result<PathBuf> {
        let state = self.state.as_ref().context("the cluster is another's")?;
        let tag = std::fs::read_to_string(state.path().join("tag"))?;
        Ok(format!("/var/run/netns/toll-{}-node1", tag.trim()).into())
    }

    /// Nodes that may get trials: not cordoned, and with an agent.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub fn hosts(&self) -> Result<Vec<String>> {
        let agents = self.get(&["pods", "-n", "toll", "-l", AGENTS])?;
        let nodes = self.get(&["nodes"])?;
        let named = |node: &Value| list(&agents, "/items").iter().any(|pod| pod["spec"]["nodeName"] == *node);
        let free = |node: &&Value| node["spec"]["unschedulable"] != true && named(&node["metadata"]["name"]);
        let hosts = list(&nodes, "/items").iter().filter(free);
        Ok(hosts.filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())).collect())
    }

    /// Ends every process `program` in the pods of `selector` with SIGKILL. The processes of a cluster that others made
    /// are out of reach: its pods are deleted by force, which is a SIGTERM.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&self, program: &str, selector: &str) -> Result<()> {
        if self.is_our_own() { self.script(["kill", program]).map(drop) } else { self.delete_pods(selector) }
    }

    /// Deletes pods without waiting for their end.
    ///
    /// # Errors
    /// When they can't be deleted.
    pub fn delete_pods(&self, selector: &str) -> Result<()> {
        self.kubectl(&["-n", "toll", "delete", "pod", "-l", selector, "--force", "--grace-period=0"])
            .map(drop)
    }

    /// Processes of our own cluster's pods by program, and interfaces of trials on its nodes. Of a cluster that others
    /// made nothing is known.
    ///
    /// # Errors
    /// When they can't be looked for.
    pub fn on_the_nodes(&self, programs: &[&str]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if self.is_our_own() {
            for program in programs {
                let processes = String::from_utf8(self.script(["pids", program])?.stdout)?;
                found.extend(processes.lines().map(|pid| format!("{program} {pid}")));
            }
            for node in ["node1", "node2"] {
                let links = self.script(["enter", node, "ip", "-o", "link"])?;
                let links = String::from_utf8(links.stdout)?;
                found.extend(links.lines().filter(|line| line.contains("toll trial")).map(str::to_owned));
            }
        }
        Ok(found)
    }

    /// What trials have left on the nodes: their processes and interfaces.
    ///
    /// # Errors
    /// When it can't be looked for.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        self.on_the_nodes(&["toll-vmm", "toll-endpoint"])
    }

    /// What may say why something did not happen.
    pub fn story(&self) -> String {
        let ask = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        [
            ask(&["-n", "toll", "get", "pods", "-o", "wide"]),
            ask(&["get", "campaigns", "-A"]),
            ask(&["-n", "toll", "logs", "deployment/toll-orchestrator", "--tail=30"]),
            ask(&["-n", "toll", "logs", "daemonset/toll-agent", "--tail=30"]),
        ]
        .join("\n---\n")
    }
}

/// Where a user would sit: a directory with the project's manifests in it, `toll` and `kubectl` in the path.
struct Desk {
    directory: tempfile::TempDir,
}

impl Desk {
    fn new(cluster: &Cluster) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let kubectl = match (&cluster.state, another()) {
            (None, Some(config)) => format!("kubectl --kubeconfig '{}'", config.display()),
            (state, _) => {
                let state = state.as_ref().context("there is no cluster")?.path().display();
                format!("env TOLL_CLUSTER_STATE='{state}' '{ROOT}/e2e/kubernetes/cluster' kubectl")
            }
        };
        std::fs::create_dir(directory.path().join("bin"))?;
        let script = directory.path().join("bin/kubectl");
        // With the path of before: it would find itself.
        let path = std::env::var("PATH").unwrap_or_default();
        std::fs::write(&script, format!("#!/bin/sh\nPATH='{path}' exec {kubectl} \"$@\"\n"))?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        symlink(Path::new(ROOT).join("manifests"), directory.path().join("manifests"))?;
        Ok(Self { directory })
    }

    fn run(&self, line: &str) -> Result<Output> {
        let programs = readme::path_with(&programs::directory()?);
        let path = format!("{}:{programs}", self.directory.path().join("bin").display());
        // A deletion waits for finalizers, for ever if nobody takes them off.
        let mut shell = Command::new("timeout");
        shell.args(["120", "sh", "-ec", line]).current_dir(self.directory.path()).env("PATH", path);
        run(&mut shell, None).with_context(|| line.to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.state.is_some()
            && let Err(error) = self.script(["down"])
        {
            eprintln!("the cluster was not taken down: {error:#}");
        }
    }
}

/// The image of this very tree, built without optimisation: its results are flagged.
fn image() -> Result<PathBuf> {
    let image = Path::new(ROOT).join("target/images/e2e.tar");
    let mut build = Command::new("manifests/images/build");
    run(build.current_dir(ROOT).env("TOLL_IMAGE_PROFILE", "dev").arg(&image), None)?;
    Ok(image)
}

fn spawn(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}

fn run(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let output = spawn(command, input)?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output)
}
