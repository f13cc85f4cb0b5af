//! The command line's side of the HTTP API.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use toll_protocol::file::{Content, FileError};
use toll_protocol::result::CampaignResult;
use toll_protocol::service::{AgentStatus, CampaignStatus, Refusal, Submitted};

use super::socket;
use crate::file;

/// Where an orchestrator is that has no socket here.
pub const DEFAULT: &str = "http://127.0.0.1:8080";
/// What an address begins with that is a path.
const UNIX: &str = "unix:";
/// How long the orchestrator may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to answer. A submission is durable when it is answered.
const ANSWER: Duration = Duration::from_secs(60);
/// What is taken of one event of a status: more is no status.
const LONGEST_EVENT: usize = 64 << 20;

/// Why the orchestrator gave no answer, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("`{server}` is no address of an orchestrator: write http://HOST:PORT or unix:PATH")]
    Address {
        /// What was given.
        server: String,
    },
    /// The token's file is not read.
    #[error(transparent)]
    Token(#[from] FileError),
    /// The token's file holds none.
    #[error("{file} holds no token: its first line is empty")]
    NoToken {
        /// The file.
        file: String,
    },
    /// It could not be asked.
    #[error("the orchestrator at {server} can't be asked: is toll serve running there?")]
    Request {
        /// Where.
        server: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// It said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// What it said is not what this version understands.
    #[error("the orchestrator's answer can't be understood (HTTP status {status}): is it another version?")]
    Answer {
        /// Status of the answer.
        status: u16,
        /// What is wrong with it.
        source: Option<serde_json::Error>,
    },
    /// It stopped talking.
    #[error("the orchestrator at {server} went away while campaign {id} was being watched: ask again")]
    Gone {
        /// Where.
        server: String,
        /// The campaign.
        id: String,
    },
}

/// Asks one orchestrator.
pub struct Client {
    /// As it was given.
    name: String,
    server: Url,
    token: Option<String>,
    http: reqwest::Client,
}

impl Client {
    /// A client of the orchestrator at `server`, `http://HOST:PORT` or `unix:PATH`; without it, of the one whose Unix
    /// socket this process may use, or else of one at [`DEFAULT`]. `token` is the file of what it wants to see of those
    /// who change something over TCP.
    ///
    /// # Errors
    /// [`ClientError::Address`], [`ClientError::Token`], [`ClientError::NoToken`], [`ClientError::Request`].
    pub fn new(server: Option<&str>, token: Option<&Path>) -> Result<Self, ClientError> {
        let found = || socket::find().map(|path| format!("{UNIX}{}", path.display()));
        let name = server.map(str::to_owned).or_else(found).unwrap_or_else(|| DEFAULT.to_owned());
        let address = || ClientError::Address { server: name.clone() };
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT);
        let url = match name.strip_prefix(UNIX) {
            Some(path) if !path.is_empty() => {
                http = http.unix_socket(path);
                // The name in the request; who is meant is clear.
                "http://localhost"
            }
            _ => &name,
        };
        let url = Url::parse(url).map_err(|_| address())?;
        if url.scheme() != "http" || url.host_str().is_none() {
            return Err(address());
        }
        let token = token.map(read_token).transpose()?;
        let http = http.build().map_err(|source| ClientError::Request { server: name.clone(), source })?;
        Ok(Self { name, server: url, token, http })
    }

    /// Submits a document.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn submit(&self, id: Option<&str>, document: String) -> Result<Submitted, ClientError> {
        let mut request = self.request(Method::POST, &["campaigns"]).body(document);
        if let Some(id) = id {
            request = request.query(&[("id", id)]);
        }
        self.ask(request).await
    }

    /// Every campaign, the latest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn campaigns(&self) -> Result<Vec<CampaignStatus>, ClientError> {
        self.ask(self.request(Method::GET, &["campaigns"])).await
    }

    /// One campaign.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn campaign(&self, id: &str) -> Result<CampaignStatus, ClientError> {
        self.ask(self.request(Method::GET, &["campaigns", id])).await
    }

    /// Cancels a campaign.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel(&self, id: &str) -> Result<CampaignStatus, ClientError> {
        self.ask(self.request(Method::DELETE, &["campaigns", id])).await
    }

    /// The result of a campaign, as far as it has come.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn result(&self, id: &str) -> Result<CampaignResult, ClientError> {
        self.ask(self.request(Method::GET, &["campaigns", id, "result"])).await
    }

    /// Every agent that has been connected.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn agents(&self) -> Result<Vec<AgentStatus>, ClientError> {
        self.ask(self.request(Method::GET, &["agents"])).await
    }

    /// Tells `see` of a campaign's status until it is over, and gives the last one back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn watch(
        &self,
        id: &str,
        mut see: impl FnMut(&CampaignStatus),
    ) -> Result<CampaignStatus, ClientError> {
        let gone = || ClientError::Gone { server: self.name.clone(), id: id.to_owned() };
        let mut answer = self.send(self.request(Method::GET, &["campaigns", id, "events"])).await?;
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            text.extend_from_slice(&chunk);
            if text.len() > LONGEST_EVENT {
                return Err(ClientError::Answer { status: answer.status().as_u16(), source: None });
            }
            // An event ends with an empty line; a status in it is one line (WHATWG HTML, 9.2.6).
            while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                let data = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "));
                let Some(data) = data else { continue };
                let status: CampaignStatus = serde_json::from_slice(data)
                    .map_err(|source| ClientError::Answer { status: 200, source: Some(source) })?;
                see(&status);
                if status.state.is_over() {
                    return Ok(status);
                }
            }
        }
        Err(gone())
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let server = self.name.clone();
        let answer = request.send().await.map_err(|source| ClientError::Request { server, source })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let text = answer.bytes().await.unwrap_or_default();
        match serde_json::from_slice(&text) {
            Ok(refusal) => Err(ClientError::Refused(refusal)),
            Err(source) => Err(ClientError::Answer { status, source: Some(source) }),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let server = self.name.clone();
        let answer = self.send(request.timeout(ANSWER)).await?;
        let status = answer.status().as_u16();
        let text = answer.bytes().await.map_err(|source| ClientError::Request { server, source })?;
        serde_json::from_slice(&text).map_err(|source| ClientError::Answer { status, source: Some(source) })
    }
}

/// The first line of a file.
///
/// # Errors
/// [`ClientError::Token`]; [`ClientError::NoToken`] for an empty one.
pub fn read_token(file: &Path) -> Result<String, ClientError> {
    let text = file::read(file, Content::TOKEN)?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(ClientError::NoToken { file: file.display().to_string() }),
    }
}
