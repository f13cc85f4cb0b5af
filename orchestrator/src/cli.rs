//! The command line of `toll`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};
use toll_protocol::printable::printable;
use toll_protocol::trial::TrialId;

use crate::exit::{Exit, print_out};
use crate::manifest::{self, ManifestError};
use crate::pki::{DEFAULT_DAYS, files};
use crate::remote::{self, Question, Server};
use crate::run::{self, Format};
use crate::schema::Document;
use crate::serve::{self, ServeArguments};
use crate::service::handle::{PAGE, PageQuery};
use crate::trace::{self, Source};
use crate::{doctor, from_ledger, kube, show_plan};

/// Measures what virtualisation takes on a network.
#[derive(Debug, Parser)]
#[command(name = "toll", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 a gate was not passed, 2 usage, 3 invalid campaign, \
                          4 infrastructure (a trial has no figures), 5 refused (its hosts can't do it), 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a campaign in a lab on this machine
    Run {
        /// The campaign (YAML)
        file: PathBuf,
        /// Where results go: report.html, result.json, ledger.sqlite, logs [default: ./toll-NAME-TIME]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// What to print on stdout
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Check a campaign
    Validate {
        /// The campaign (YAML)
        file: PathBuf,
    },
    /// Show the cells of a campaign and how long it takes
    Plan {
        /// The campaign (YAML)
        file: PathBuf,
    },
    /// Print the definition of the Kubernetes object `Campaign` (YAML)
    Crd,
    /// Print the JSON Schema of a campaign, for editors, or of result.json
    Schema {
        /// Of which document
        document: Document,
    },
    /// Say what this machine offers, and what to do about what it lacks
    Doctor,
    /// Be the orchestrator of a fleet: agents dial it, campaigns are submitted to it
    Serve(ServeArguments),
    /// Submit a campaign to a service; prints its id
    Submit {
        /// The campaign (YAML)
        file: PathBuf,
        /// The id that it shall have [default: NAME-TIME]
        #[arg(long)]
        id: Option<String>,
        /// Follow it to its end
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Show how a campaign is and what it found so far, or list campaigns, the latest first
    Status {
        /// Its id
        id: Option<String>,
        /// How many are listed, 500 at most
        #[arg(long, value_name = "N", default_value_t = PAGE, conflicts_with = "id")]
        limit: usize,
        /// List those that come after: what the list before ended with
        #[arg(long = "continue", value_name = "PLACE", conflicts_with = "id")]
        after: Option<String>,
        /// What to print on stdout
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        #[command(flatten)]
        server: Server,
    },
    /// Follow a campaign to its end
    Watch {
        /// Its id
        id: String,
        #[command(flatten)]
        server: Server,
    },
    /// End a campaign: what was measured is kept
    Cancel {
        /// Its id
        id: String,
        #[command(flatten)]
        server: Server,
    },
    /// Show what a campaign found, so far
    Results {
        /// Its id
        id: String,
        /// Where result.json and report.html are put
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// What to print on stdout
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        #[command(flatten)]
        server: Server,
    },
    /// Show the agents of a service
    Agents {
        /// What to print on stdout
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        #[command(flatten)]
        server: Server,
    },
    /// Show the way of a frame through the adapter of a trial's guest, stage by stage
    Trace {
        /// The trial's id, 12 hexadecimal digits, as in result.json and the report
        trial: TrialId,
        /// A result.json or its directory [default: of those in this directory the latest that has the trial]
        #[arg(long, value_name = "PATH", conflicts_with = "campaign")]
        results: Option<PathBuf>,
        /// A campaign of a service, by its id
        #[arg(long, value_name = "ID")]
        campaign: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// Show what a ledger has, and write its report.html and result.json again
    Report {
        /// A ledger.sqlite or its directory
        ledger: PathBuf,
        /// Where report.html and result.json go [default: beside the ledger]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// What to print on stdout
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Make certificates for the orchestrator and its agents
    Pki {
        #[command(subcommand)]
        action: Pki,
    },
}

#[derive(Debug, Subcommand)]
enum Pki {
    /// Make an authority, and the orchestrator's certificate
    Init {
        /// Where; DIR/orchestrator is what toll serve takes as --pki
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long they are good
        #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Issue certificates for agents
    Issue {
        /// The authority's directory; DIR/NAME is what toll-agent takes as --pki
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long they are good
        #[arg(long, default_value_t = DEFAULT_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// One certificate for all agents, whose holder may speak for any host: for a DaemonSet's Secret
        #[arg(long, conflicts_with = "names")]
        fleet: bool,
        /// Names of the agents, which are those of their hosts
        #[arg(value_name = "NAME", required_unless_present = "fleet")]
        names: Vec<String>,
    },
}

impl Pki {
    fn execute(self) -> Result<Exit> {
        let made = match self {
            Self::Init { dir, days } => vec![files::init(&dir, days)?],
            Self::Issue { dir, days, fleet: true, .. } => vec![files::issue_fleet(&dir, days)?],
            Self::Issue { dir, days, names, .. } => {
                names.iter().map(|name| files::issue(&dir, name, days)).collect::<Result<_, _>>()?
            }
        };
        for directory in made {
            print_out(&format!("{}\n", printable(&directory.display().to_string())))?;
        }
        Ok(Exit::Ok)
    }
}

impl Cli {
    /// What is logged unless TOLL_LOG says otherwise: a service tells what it does, other commands print it.
    pub const fn log_level(&self) -> &'static str {
        match &self.command {
            Command::Serve(_) => "info",
            _ => "warn",
        }
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// What went wrong, when it is the machine's or Toll's own; an invalid campaign is told here.
    pub fn execute(self) -> Result<Exit> {
        match self.command {
            Command::Run { file, out, format } => match manifest::load(&file) {
                Ok((_, campaign)) if campaign.lab.is_none() => Ok(no_lab(&file)),
                Ok((text, campaign)) => run::run(&text, &campaign, out, format),
                Err(error) => Ok(told(&error)),
            },
            Command::Validate { file } => match manifest::load(&file) {
                Ok((_, campaign)) => {
                    let file = file.display().to_string();
                    print_out(&format!("{}: campaign {} is valid\n", printable(&file), campaign.name))?;
                    Ok(Exit::Ok)
                }
                Err(error) => Ok(told(&error)),
            },
            Command::Plan { file } => match manifest::load(&file) {
                Ok((_, campaign)) => {
                    let Some(lab) = campaign.lab else {
                        return Ok(no_lab(&file));
                    };
                    print_out(&show_plan::show(&campaign, &lab))?;
                    Ok(Exit::Ok)
                }
                Err(error) => Ok(told(&error)),
            },
            Command::Crd => {
                print_out(&kube::crd::yaml().map_err(anyhow::Error::msg)?)?;
                Ok(Exit::Ok)
            }
            Command::Schema { document } => {
                print_out(&document.text().map_err(anyhow::Error::msg)?)?;
                Ok(Exit::Ok)
            }
            Command::Doctor => doctor::run(),
            Command::Serve(arguments) => serve::serve(&arguments),
            Command::Submit { file, id, watch, server } => match manifest::load(&file) {
                Ok((document, _)) => {
                    remote::ask(&server, Question::Submit { document, id: id.as_deref(), watch })
                }
                Err(error) => Ok(told(&error)),
            },
            Command::Status { id: Some(id), format, server, .. } => {
                remote::ask(&server, Question::Status(&id, format))
            }
            Command::Status { id: None, limit, after, format, server } => {
                remote::ask(&server, Question::List(PageQuery { limit: Some(limit), after }, format))
            }
            Command::Watch { id, server } => remote::ask(&server, Question::Watch(&id)),
            Command::Cancel { id, server } => remote::ask(&server, Question::Cancel(&id)),
            Command::Results { id, out, format, server } => {
                remote::ask(&server, Question::Results { id: &id, out: out.as_deref(), format })
            }
            Command::Agents { format, server } => remote::ask(&server, Question::Agents(format)),
            Command::Trace { trial, results, campaign, server } => {
                let source = match (&results, &campaign) {
                    (Some(path), _) => Source::Path(path),
                    (None, Some(id)) => Source::Campaign(&server, id),
                    (None, None) => Source::Here,
                };
                trace::trace(trial, source)
            }
            Command::Report { ledger, out, format } => from_ledger::report(&ledger, out, format),
            Command::Pki { action } => action.execute(),
        }
    }
}

/// Tells that a campaign has no hosts on this machine.
fn no_lab(file: &Path) -> Exit {
    eprintln!(
        "{}: spec.hosts names no lab: write `lab: {{count: 2}}` there",
        printable(&file.to_string_lossy())
    );
    Exit::InvalidCampaign
}

/// Tells what is wrong with a manifest.
fn told(error: &ManifestError) -> Exit {
    match error {
        ManifestError::Invalid(problems) => {
            eprintln!("{problems}");
            Exit::InvalidCampaign
        }
        ManifestError::TooLong { .. } | ManifestError::NotText { .. } => {
            eprintln!("{}", printable(&error.to_string()));
            Exit::InvalidCampaign
        }
        ManifestError::Read { source, .. } => {
            eprintln!("{}", printable(&format!("{error}: {source}")));
            Exit::Usage
        }
    }
}
