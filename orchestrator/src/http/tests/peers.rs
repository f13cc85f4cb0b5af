//! Who may change something, over real sockets.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream};

use super::*;

/// A file of a token as `toll` wants to have it.
fn token_file(directory: &Path, token: &str) -> PathBuf {
    let path = directory.join(format!("token-{token}"));
    let file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&path);
    std::io::Write::write_all(&mut file.expect("made"), format!("{token}\n").as_bytes()).expect("writes");
    path
}

/// What a stream answers a request with: its head and body.
async fn asked(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let request = format!("{request}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{GOOD}", GOOD.len());
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

async fn connect(to: impl ToSocketAddrs) -> TcpStream {
    TcpStream::connect(to).await.expect("connected")
}

/// A forwarded port, as of socat, ssh -L or kubectl port-forward: what comes to the address goes on to `to`.
async fn forward(to: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut to = connect(&to).await;
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_over_tcp_take_the_token_and_questions_dont() {
    let served = serve_with(Some("secret")).await;
    let stranger = Client::new(Some(&served.url), None).expect("a client");
    let error = stranger.submit(None, GOOD.to_owned()).await.expect_err("shows no token");
    assert!(error.to_string().contains("token"), "{error}");
    assert!(stranger.campaigns(&PageQuery::default()).await.expect("may be asked").items.is_empty());
    for (token, taken) in [("secre", false), ("secrets", false), ("secret", true)] {
        let file = token_file(served.directory.path(), token);
        let client = Client::new(Some(&served.url), Some(&file)).expect("a client");
        assert_eq!(client.submit(None, GOOD.to_owned()).await.is_ok(), taken, "{token}");
    }
    // The owner could read the token, and needs none.
    client(&served).submit(None, GOOD.to_owned()).await.expect("is the owner");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_no_change_comes_over_tcp_not_even_from_this_machine() {
    let served = serve_with(None).await;
    client(&served).submit(Some("one"), GOOD.to_owned()).await.expect("is the owner");
    let address = served.url.trim_start_matches("http://").to_owned();
    // A reverse proxy that adds nothing is such a forward too.
    let forwarded = forward(address.clone()).await.to_string();
    for to in [&address, &forwarded] {
        for request in [
            "POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost",
            "DELETE /api/v1/campaigns/one HTTP/1.1\r\nHost: 127.0.0.1:8080",
            "PUT /api/v1/campaigns/one HTTP/1.1\r\nHost: localhost",
            "POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ",
            "POST /api/v1/campaigns HTTP/1.0\r\nHost: localhost",
        ] {
            let answer = asked(connect(to).await, request).await;
            assert!(
                answer.contains(" 403 Forbidden") && answer.contains("Unix socket"),
                "{to} {request}: {answer}"
            );
        }
        let read = asked(connect(to).await, "GET /api/v1/agents HTTP/1.1\r\nHost: localhost").await;
        assert!(read.starts_with("HTTP/1.1 200"), "{read}");
    }
    let known: Vec<String> = client(&served)
        .campaigns(&PageQuery::default())
        .await
        .expect("answers")
        .items
        .into_iter()
        .map(|status| status.id)
        .collect();
    assert_eq!(known, ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_or_a_proxy_hands_on_to_the_unix_socket_is_refused() {
    let served = serve_with(None).await;
    for handed_on in
        ["Origin: http://localhost", "Sec-Fetch-Site: none", "Via: 1.1 x", "X-Forwarded-For: ::1"]
    {
        let stream = UnixStream::connect(&served.socket).await.expect("connected");
        let request = format!("POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost\r\n{handed_on}");
        let answer = asked(stream, &request).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{handed_on}: {answer}");
    }
    let stream = UnixStream::connect(&served.socket).await.expect("connected");
    let answer = asked(stream, "POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost").await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_another_name_is_refused_whatever_it_asks() {
    let served = serve_with(Some("secret")).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    for request in [
        "GET /api/v1/agents HTTP/1.1\r\nHost: example.org",
        "GET /metrics HTTP/1.1\r\nHost: example.org:8080",
        "HEAD /livez HTTP/1.1\r\nHost: localhost.example.org",
        "OPTIONS /livez HTTP/1.1\r\nHost: example.org",
        "POST /api/v1/campaigns HTTP/1.1\r\nHost: example.org\r\nAuthorization: Bearer secret",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: example.org",
        "GET http://example.org/livez HTTP/1.1\r\nHost: localhost",
        "GET /livez HTTP/1.0",
    ] {
        let answer = asked(connect(&address).await, request).await;
        assert!(answer.contains(" 421 "), "{request}: {answer}");
    }
    for host in ["localhost:1", "127.0.0.1:1", "[::1]"] {
        let answer = asked(connect(&address).await, &format!("GET /livez HTTP/1.1\r\nHost: {host}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
}

#[tokio::test]
async fn another_user_at_an_opened_socket_may_ask_and_needs_the_token_for_changes() {
    let (handle, _questions) = handle::channel();
    let api = |token: Option<&str>| Api {
        handle: handle.clone(),
        token: token.map(Arc::from),
        names: Names::new(&[]),
        pulse: Pulse::new(Arc::new(AtomicU64::new(0))),
        metrics: Arc::new(String::new),
        results: Arc::new(Semaphore::new(RESULTS)),
        bodies: Bodies::default(),
        answers: Answers::new(held::BUDGET),
    };
    let ask = async |token, method, shown: &str| {
        let mut request = Request::builder().method(method).uri("/livez");
        if !shown.is_empty() {
            request = request.header("authorization", shown);
        }
        let mut request = request.body(Body::empty()).expect("a request");
        request.extensions_mut().insert(guard::Peer::Local { user: 1234, owner: false });
        tower::ServiceExt::oneshot(router(api(token)), request).await.expect("an answer").status().as_u16()
    };
    assert_eq!(ask(None, "GET", "").await, 200);
    assert_eq!(ask(None, "DELETE", "").await, 403);
    assert_eq!(ask(Some("secret"), "DELETE", "").await, 401);
    assert_eq!(ask(Some("secret"), "DELETE", "Bearer secret").await, 405);
}

#[test]
fn a_token_is_read_from_a_file_that_nobody_else_can_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let file = token_file(directory.path(), "secret");
    assert_eq!(client::read_token(&file).expect("is a token"), "secret");
    for mode in [0o644, 0o640, 0o604] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
        let error = client::read_token(&file).expect_err("others can read it").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
    let error = client::read_token(Path::new("/dev/zero")).expect_err("has no end").to_string();
    assert!(error.contains("neither a regular file nor a pipe"), "{error}");
    let error = client::read_token(&token_file(directory.path(), "")).expect_err("is empty").to_string();
    assert!(error.contains("first line is empty"), "{error}");
    // `--token-file <(pass show toll)` of a shell.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    std::io::Write::write_all(&mut writer, b"piped\n").expect("writes");
    drop(writer);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    assert_eq!(client::read_token(Path::new(&path)).expect("is a token"), "piped");
}
