//! Readers that take their time, over real sockets.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// Bytes of the answer that each asks for.
const LONG: usize = 4 << 20;
/// More of them than fit into the budget.
const READERS: usize = 200;

/// Serves a long answer; its address, and what is held for readers of it.
async fn serve_long() -> (SocketAddr, Answers) {
    let (handle, _questions) = handle::channel();
    let answers = Answers::new(held::BUDGET);
    let api = Api {
        handle,
        token: None,
        names: Names::new(&[]),
        pulse: Pulse::new(Arc::new(AtomicU64::new(0))),
        metrics: Arc::new(String::new),
        results: Arc::new(Semaphore::new(RESULTS)),
        bodies: Bodies::default(),
        answers: answers.clone(),
    };
    let app = Router::new()
        .route("/long", get(async || vec![b'x'; LONG]))
        .layer(middleware::from_fn_with_state(api, held::hold));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(listen::serve(listener, app));
    (address, answers)
}

async fn ask(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = b"GET /long HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("asked");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_share_the_memory_and_time_of_all_and_keep_nobody_out() {
    let (address, answers) = serve_long().await;
    let mut slow = Vec::new();
    for _ in 0..READERS {
        let mut stream = ask(address).await;
        // The head has come: the whole answer is made.
        stream.read_exact(&mut [0; 16]).await.expect("answered");
        assert!(answers.bytes() <= held::BUDGET, "{} bytes are held", answers.bytes());
        slow.push(stream);
    }
    assert!(answers.bytes() > held::BUDGET / 2, "{} bytes are held", answers.bytes());
    // One that reads is served at once.
    let mut answer = Vec::new();
    let read = async { ask(address).await.read_to_end(&mut answer).await };
    tokio::time::timeout(Duration::from_secs(5), read).await.expect("in time").expect("whole");
    assert!(answer.len() > LONG && answer.ends_with(b"xxxx"), "{}", answer.len());
    // The others have had their time. What is looked at is what is held: they may keep their ends open for ever.
    let mut look = tokio::time::interval(Duration::from_millis(50));
    let freed = async {
        while answers.bytes() > 0 {
            look.tick().await;
        }
    };
    let freed = tokio::time::timeout(3 * patience::MOST_PATIENCE, freed).await;
    assert!(freed.is_ok(), "{} bytes are held", answers.bytes());
    // Their answers are known not to be whole.
    let mut rest = Vec::new();
    let ended = slow.remove(0).read_to_end(&mut rest).await;
    assert!(ended.is_err() || rest.len() < LONG, "{} bytes came", rest.len());
}
