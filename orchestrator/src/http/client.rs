//! The command line's side of the HTTP API.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use toll_protocol::file::{Content, FileError};
use toll_protocol::printable;
use toll_protocol::result::CampaignResult;
use toll_protocol::service::{AgentStatus, CampaignPage, CampaignStatus, LeftOut, Refusal, Submitted};

use crate::service::handle::PageQuery;

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
/// Bytes that are taken of an answer, or of one event of a status: a status of the largest campaign has half of it.
const LONGEST: u64 = 64 << 20;
/// Bytes that are taken of a refusal: it names at most some of what is wrong.
const LONGEST_REFUSAL: u64 = 1 << 20;

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
    /// It does not stop talking.
    #[error(
        "the answer of {server} is longer than {longest} bytes, which no answer of an orchestrator is: is it one? Look at \
         --server and TOLL_SERVER, and ask for fewer at once (--limit)"
    )]
    TooLong {
        /// Where.
        server: String,
        /// Most bytes that are taken.
        longest: u64,
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

    /// A page of the campaigns, the latest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn campaigns(&self, query: &PageQuery) -> Result<CampaignPage, ClientError> {
        let mut request = self.request(Method::GET, &["campaigns"]);
        if let Some(limit) = query.limit {
            request = request.query(&[("limit", limit)]);
        }
        if let Some(after) = &query.after {
            request = request.query(&[("continue", after)]);
        }
        self.ask(request).await
    }

    /// What lies in the service's data directory and can't be served.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn left_out(&self) -> Result<LeftOut, ClientError> {
        self.ask(self.request(Method::GET, &["left-out"])).await
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
        let request = self.request(Method::GET, &["campaigns", id, "result"]);
        self.read(request, Content::RESULT.longest, CampaignResult::read).await
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
        // What has come, and how much of it was looked through.
        let (mut text, mut seen) = (Vec::new(), 0);
        while let Ok(Some(chunk)) = answer.chunk().await {
            text.extend_from_slice(&chunk);
            // An event ends with an empty line; a status in it is one line (WHATWG HTML, 9.2.6).
            while let Some(end) = text[seen..].windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = text.drain(..seen + end + 2).collect();
                seen = 0;
                let data = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "));
                let Some(data) = data else { continue };
                let status: CampaignStatus = printed(data)
                    .map_err(|source| ClientError::Answer { status: 200, source: Some(source) })?;
                see(&status);
                if status.state.is_over() {
                    return Ok(status);
                }
            }
            seen = text.len().saturating_sub(1);
            if text.len() as u64 > LONGEST {
                return Err(self.too_long(LONGEST));
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
        let text = self.text(answer, LONGEST_REFUSAL).await?;
        match printed(&text) {
            Ok(refusal) => Err(ClientError::Refused(refusal)),
            Err(source) => Err(ClientError::Answer { status, source: Some(source) }),
        }
    }

    /// An answer that is printed.
    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        self.read(request, LONGEST, printed).await
    }

    async fn read<T>(
        &self,
        request: RequestBuilder,
        longest: u64,
        parse: impl Fn(&[u8]) -> serde_json::Result<T>,
    ) -> Result<T, ClientError> {
        let answer = self.send(request.timeout(ANSWER)).await?;
        let status = answer.status().as_u16();
        let text = self.text(answer, longest).await?;
        parse(&text).map_err(|source| ClientError::Answer { status, source: Some(source) })
    }

    /// The body of an answer, at most `longest` bytes of it.
    async fn text(&self, mut answer: Response, longest: u64) -> Result<Vec<u8>, ClientError> {
        let failed = |source| ClientError::Request { server: self.name.clone(), source };
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if text.len() as u64 + chunk.len() as u64 > longest {
                return Err(self.too_long(longest));
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }

    fn too_long(&self, longest: u64) -> ClientError {
        ClientError::TooLong { server: self.name.clone(), longest }
    }
}

/// Reads what ends up on a terminal, and may come from anybody who has the server's address.
fn printed<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(&printable::json(json))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn what_a_server_says_is_printable() {
        let said = br#"{"message": "\u001b[2Jgone", "problems": ["ok\r\ntoll: valid", "a\u202eb"]}"#;
        let refusal: Refusal = printed(said).expect("is a refusal");
        assert_eq!(refusal.message, "\\u{1b}[2Jgone");
        assert_eq!(refusal.problems, ["ok\\r\\ntoll: valid", "a\\u{202e}b"]);
    }

    async fn talk(mut stream: tokio::net::TcpStream, head: &str) -> std::io::Result<()> {
        let _question = stream.read(&mut [0; 4096]).await?;
        stream.write_all(head.as_bytes()).await?;
        loop {
            stream.write_all(&[b' '; 64 << 10]).await?;
        }
    }

    /// Something that answers every request with `head` and then with blanks for ever; its address.
    async fn talker(head: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(talk(stream, head));
            }
        });
        format!("http://{address}")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_without_an_end_is_not_read_to_it() {
        for (head, most) in [
            ("HTTP/1.1 200 OK\r\n\r\n", LONGEST),
            ("HTTP/1.1 404 Not Found\r\n\r\n", LONGEST_REFUSAL),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n", LONGEST),
        ] {
            let server = talker(head).await;
            let client = Client::new(Some(&server), None).expect("a client");
            let watched = client.watch("c", |_| {}).await.map(drop);
            let asked = client.agents().await.map(drop);
            for error in [watched.expect_err("has no end"), asked.expect_err("has no end")] {
                assert!(
                    matches!(&error, ClientError::TooLong { longest, .. } if *longest == most),
                    "{error}"
                );
                assert!(error.to_string().contains(&server), "{error}");
            }
        }
    }
}
