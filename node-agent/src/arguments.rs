//! The agent's command line. What a DaemonSet sets for each node can also come from environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use toll_node_agent::address::HostPort;
use toll_node_agent::labels::Label;
use toll_node_agent::users::UserRange;
use toll_protocol::facts::Wire;
use toll_protocol::units::{AddressRange, Bytes};

/// Dials the orchestrator and runs the ends of trials on this host until SIGTERM, SIGINT or SIGHUP.
#[derive(Debug, Parser)]
#[command(
    name = "toll-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Arguments {
    #[command(subcommand)]
    /// What to do instead.
    pub command: Option<Command>,
    #[command(flatten)]
    /// Where to dial, and who the agent is.
    pub run: Option<Run>,
}

/// What the agent does instead of running trials.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write what the agent knows of this host to standard output, as JSON.
    Facts {
        /// The test NIC.
        #[arg(long, value_name = "IFACE")]
        nic: Option<String>,
    },
}

/// Where to dial, and who the agent is.
#[derive(Debug, Args)]
pub struct Run {
    /// Where the orchestrator listens; a name is looked up anew for each connection.
    #[arg(long, value_name = "HOST:PORT", env = "TOLL_ORCHESTRATOR")]
    pub orchestrator: HostPort,
    /// The name in the orchestrator's certificate.
    #[arg(long, value_name = "NAME", default_value = "toll-orchestrator", value_parser = NonEmptyStringValueParser::new())]
    pub server_name: String,
    /// This agent's name, which is that of its certificate, byte for byte [default: the host's name, in lower case].
    #[arg(long, value_name = "NAME", env = "TOLL_NODE_NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// A label that campaigns select this host by, in the syntax of Kubernetes; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// The test NIC [default: that of the default route].
    #[arg(long, value_name = "IFACE", env = "TOLL_NIC", value_parser = NonEmptyStringValueParser::new())]
    pub nic: Option<String>,
    /// How guests reach the wire [default: bridge if the NIC is one, else macvtap].
    #[arg(long, value_name = "KIND")]
    pub wire: Option<WireKind>,
    /// The NIC carries nothing but trials: needed with --wire exclusive where that can't be seen, because the
    /// orchestrator's address is this host's own or behind a gateway.
    #[arg(long)]
    pub nic_is_spare: bool,
    /// Addresses of the NIC's network that guests may have, and nobody else uses.
    #[arg(long, value_name = "FIRST-LAST", env = "TOLL_GUEST_ADDRESSES")]
    pub guest_addresses: Option<AddressRange>,
    /// User ids, and group ids alike, for the processes of ends: nobody else's [default: 61000-61183, or the agent's own id
    /// where it may give no other].
    #[arg(long, value_name = "FIRST-LAST")]
    pub child_uids: Option<UserRange>,
    /// Folder for captures of what crosses a trial's port, where campaigns ask for them; without it, such trials are
    /// refused.
    #[arg(long, value_name = "DIR")]
    pub captures: Option<PathBuf>,
    /// What captures may take there together.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", requires = "captures")]
    pub captures_space: Bytes,
    /// Where to answer /metrics, /livez and /readyz; without it, nowhere.
    #[arg(long, value_name = "IP:PORT")]
    pub http: Option<SocketAddr>,
    /// Folder of ca.pem, certificate.pem and key.pem. Each file is read once, at the start.
    #[arg(long, value_name = "DIR", default_value = "/etc/toll/pki")]
    pub pki: PathBuf,
    /// Certificate of the authority that the orchestrator's certificate is checked against, PEM, instead.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This agent's certificate, PEM, instead.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// This agent's private key, PEM, instead.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

impl Run {
    /// Paths of the authority's certificate, the agent's certificate and its key.
    pub fn identity(&self) -> [PathBuf; 3] {
        let file = |named: &Option<PathBuf>, name| named.clone().unwrap_or_else(|| self.pki.join(name));
        [file(&self.ca, "ca.pem"), file(&self.certificate, "certificate.pem"), file(&self.key, "key.pem")]
    }
}

/// How guests reach the wire.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WireKind {
    /// The NIC is the agent's alone while trials run: each puts it on a bridge of its own.
    Exclusive,
    /// The NIC is a bridge of this host: guests are put on it, and nothing else is touched.
    Bridge,
    /// A macvtap on the NIC, whose addresses and traffic stay as they are.
    Macvtap,
}

impl From<WireKind> for Wire {
    fn from(kind: WireKind) -> Self {
        match kind {
            WireKind::Exclusive => Self::Exclusive,
            WireKind::Bridge => Self::Bridge,
            WireKind::Macvtap => Self::Macvtap,
        }
    }
}
