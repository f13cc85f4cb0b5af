//! Writers that take their time, over real sockets.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// More than there are places for documents of full length.
const WRITERS: usize = 100;

/// Announces a document of full length and sends most of it.
async fn begin(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "POST /api/v1/campaigns HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\
         Content-Length: {MAX_DOCUMENT}\r\n\r\n#"
    );
    stream.write_all(head.as_bytes()).await.expect("begun");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_writers_share_the_memory_of_all_and_keep_nobody_out() {
    let served = serve_with(Some("secret")).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    let mut slow = Vec::new();
    for _ in 0..WRITERS {
        slow.push(begin(&address).await);
    }
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let full = async {
        while served.bodies.free() >= MAX_DOCUMENT {
            look.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), full).await.expect("all places are taken");
    // Probes, questions and documents of usual length don't wait for them.
    let began = Instant::now();
    let live = reqwest::get(format!("{}/livez", served.url)).await.expect("answered");
    assert_eq!(live.status(), 200);
    client(&served).submit(Some("one"), GOOD.to_owned()).await.expect("is taken");
    assert!(client(&served).campaign("one").await.is_ok());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    // Those without a place are told to come again, and the others that theirs did not come.
    let mut told = Vec::new();
    for stream in &mut slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let status = answer.split(' ').nth(1).expect("a status").to_owned();
        assert!(status == "408" || answer.contains("retry-after: "), "{answer}");
        told.push(status);
    }
    let counts = ["408", "503"].map(|status| told.iter().filter(|told| *told == status).count());
    // Places that come free are taken by those that still wait.
    assert!(counts[0] >= bodies::BUDGET / (MAX_DOCUMENT + 1) && counts[0] + counts[1] == WRITERS, "{told:?}");
    assert_eq!(served.bodies.free(), bodies::BUDGET);
}
