//! Clients that mean harm, or that do not know what they do: a thousand that say next to nothing, and garbage of every kind.
//! Health is answered all the while.

use super::*;

/// What a health check may wait for its answer while others hold the port: HAProxy's own patience is two seconds.
const PROMPT: Duration = Duration::from_secs(2);
/// How many at once.
const CROWD: usize = 1000;

/// A thousand clients need as many descriptors, and some systems give fewer unless they are asked.
fn more_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > 3000, "{hard} descriptors are too few for this test");
}

/// Opens a connection, says the beginning of something a byte at a time, and does it again when it is sent away.
async fn slow_client(
    address: SocketAddr,
    (says, pace): (&'static [u8], Duration),
    here: watch::Sender<usize>,
) {
    let mut arrives = true;
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        if std::mem::take(&mut arrives) {
            here.send_modify(|count| *count += 1);
        }
        for byte in says {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(pace).await;
        }
        // Until the other side has had enough.
        let mut rest = [0; 512];
        while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        // Its own pace, not a wait for anything.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Asks on a new connection, as a health check does.
async fn check(api: &Api, url: &str) -> (u16, Duration) {
    let client = Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).pool_max_idle_per_host(0);
    let client = client.timeout(PATIENCE).build().unwrap();
    let asked = clock::now();
    // Renewed as the loop does it.
    api.says(fixture::primary(asked));
    let answer = client.get(url).send().await.unwrap();
    (answer.status().as_u16(), clock::now().since(asked))
}

/// A question that is never finished.
const HALF_A_BODY: &[u8] = b"POST /restart HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{";

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_slow_clients_cost_a_health_check_nothing() {
    let beginnings: [&[u8]; 4] =
        [b"GET /primary HTTP/1.1\r\nHost: x\r\nX: ", b"", b"\x16\x03\x01\x02\x00", HALF_A_BODY];
    a_crowd_costs_nothing("127.0.17.41", &beginnings.map(|says| (says, Duration::from_secs(2)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_questions_without_an_end_cost_a_health_check_nothing() {
    a_crowd_costs_nothing("127.0.17.45", &[(HALF_A_BODY, Duration::ZERO)]).await;
}

async fn a_crowd_costs_nothing(address: &str, beginnings: &[(&'static [u8], Duration)]) {
    more_descriptors();
    let api = start(address, Plain::Accepted).await;
    let mut crowd = JoinSet::new();
    let here = watch::Sender::new(0);
    for beginning in beginnings.iter().cycle().take(CROWD) {
        crowd.spawn(slow_client(api.address, *beginning, here.clone()));
    }
    // A thousand that come within one moment are another matter: how often somebody connects is not limited.
    here.subscribe().wait_for(|count| *count == CROWD).await.unwrap();
    let mut times = Vec::new();
    for scheme in ["http", "https"].into_iter().cycle().take(60) {
        let (code, took) = check(&api, &format!("{scheme}://{}/primary", api.address)).await;
        assert_eq!(code, 200);
        times.push(took);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // All are answered; what a single one takes is a busy machine's affair too, and the crowd runs on the same one.
    times.sort_unstable();
    let most = times.get(times.len() * 9 / 10);
    assert!(most.is_some_and(|took| *took < PROMPT), "health checks take {times:?}");
    crowd.shutdown().await;
    api.end().await;
}

/// Whoever is at work on an answer stays: the unit tests of the places say so, since no answer here takes any time.
#[tokio::test]
async fn who_has_not_finished_a_question_gives_way() {
    more_descriptors();
    let api = start("127.0.17.42", Plain::Accepted).await;
    api.says(fixture::primary(clock::now()));
    let mut asking = TcpStream::connect(api.address).await.unwrap();
    asking.write_all(b"POST /switchover HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{").await.unwrap();
    let mut waiting = TcpStream::connect(api.address).await.unwrap();
    waiting.write_all(b"GET /primary HTTP/1.1\r\n").await.unwrap();
    assert_eq!(api.code("/primary").await, 200);
    let mut others = Vec::new();
    for _other in 0..600 {
        others.push(TcpStream::connect(api.address).await.unwrap());
    }
    assert_eq!(api.code("/primary").await, 200);
    for mut slow in [waiting, asking] {
        let mut said = Vec::new();
        slow.read_to_end(&mut said).await.ok();
        assert!(said.is_empty(), "who only waits is sent away");
    }
    api.end().await;
}

#[tokio::test]
async fn garbage_ends_with_its_own_connection() {
    let api = start("127.0.17.43", Plain::Accepted).await;
    api.says(fixture::primary(clock::now()));
    let long_line = [b"GET /".as_slice(), &vec![b'a'; 1 << 20]].concat();
    let long_header = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 1 << 20]].concat();
    let many_headers = [b"GET / HTTP/1.1\r\n".as_slice(), &b"X: y\r\n".repeat(500), b"\r\n"].concat();
    let big_body = [
        b"PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".as_slice(),
        &vec![b' '; 1 << 20],
    ]
    .concat();
    let not_tls = [b"\x16\x03\x01\xff\xff".as_slice(), &vec![0xff; 4096]].concat();
    let noise: Vec<u8> =
        (0..65_536_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let postgres = [0, 0, 0, 8, 4, 210, 22, 47];
    let garbage: [&[u8]; 9] = [
        &long_line,
        &long_header,
        &many_headers,
        &big_body,
        &not_tls,
        &noise,
        &postgres,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzz\r\n",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(api.address).await.unwrap();
        // It may be closed before everything is said.
        stream.write_all(bytes).await.ok();
        stream.shutdown().await.ok();
        let mut said = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "the connection stays open after {} bytes", bytes.len());
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(
            said.is_empty() || !said.starts_with("HTTP/1.1 200") || bytes.starts_with(b"GET / HTTP/1.1\r\nT"),
            "{said}"
        );
        assert_eq!(api.code("/primary").await, 200);
    }
    api.end().await;
}
