//! Who may ask, and who may change something.
//!
//! | By | Reads | Changes |
//! |---|---|---|
//! | the Unix socket, as the user of the service or as root | yes | yes |
//! | the Unix socket as somebody else, if its owner has opened it to them | yes | with the token |
//! | TCP, asked by an address or a name of the service's own | yes | with the token |
//!
//! An address says nothing of who asks: a proxy, a forwarded port or any user of the machine comes from 127.0.0.1.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq as _;

use super::{Api, Refused};

/// Content policy of everything but the page, which brings its own: nothing is fetched, run or framed.
const CONTENT_POLICY: &str =
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Somebody that reached the TCP port.
    Network(SocketAddr),
    /// A process of this machine, by the Unix socket.
    Local {
        /// Its user, as the kernel tells.
        user: u32,
        /// Whether that is the service's own, or root.
        owner: bool,
    },
}

/// Names that the service is asked by over TCP. A page that a browser shows has a name of its own, and can make that lead
/// here (DNS rebinding): then its requests carry it.
#[derive(Debug, Clone)]
pub struct Names(Arc<[String]>);

impl Names {
    /// The machine's own name, `localhost`, and those `given`. Addresses are always good: no page has one of ours.
    pub fn new(given: &[String]) -> Self {
        let own = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let names = own.iter().chain(given).map(|name| plain(name)).chain([plain("localhost")]);
        Self(names.collect())
    }

    /// Whether a request is for the service. RFC 9112, 3.2: one `Host`, and what the target of the request says wins.
    fn are_meant(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        host.is_some_and(|host| self.has(&host))
            && request.uri().authority().is_none_or(|host| self.has(host))
    }

    fn has(&self, authority: &Authority) -> bool {
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let name = plain(host);
        // What stands before an @ is no host.
        !authority.as_str().contains('@') && (address.is_ok() || self.0.contains(&name))
    }
}

/// A name as it is compared: DNS knows no case, and a dot at the end only says that it is whole.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Refuses requests for others, and changes of those who may make none.
pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    // A connection without a known peer is one that this code has a fault about: it may do the least.
    let peer = request.extensions().get::<Peer>().copied();
    if !matches!(peer, Some(Peer::Local { .. })) && !api.names.are_meant(&request) {
        let why = "this service has another name: ask for it by its address, or give toll serve the name that you use \
                   (--http-name NAME)";
        return Refused::new(StatusCode::MISDIRECTED_REQUEST, why).into_response();
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads || is_owner(peer, request.headers()) {
        return next.run(request).await;
    }
    match &api.token {
        Some(token) if bearer(request.headers()).is_some_and(|shown| same(shown, token)) => {
            next.run(request).await
        }
        Some(_) => {
            let why = "a token is needed: send `Authorization: Bearer TOKEN` (toll --token-file FILE)";
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (challenge, Refused::new(StatusCode::UNAUTHORIZED, why)).into_response()
        }
        None => {
            let why = "changes are taken at the orchestrator's Unix socket alone: use toll on its machine, as the user \
                       that runs toll serve or as root; to take them from elsewhere too, start toll serve with --token-file FILE";
            Refused::new(StatusCode::FORBIDDEN, why).into_response()
        }
    }
}

/// Whether a request comes from the service's owner and was not handed on for somebody else.
fn is_owner(peer: Option<Peer>, headers: &HeaderMap) -> bool {
    let handed_on = ["origin", "sec-fetch-site", "forwarded", "x-forwarded-for", "via"];
    matches!(peer, Some(Peer::Local { owner: true, .. }))
        && !handed_on.iter().any(|name| headers.contains_key(*name))
}

/// RFC 6750, 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Compares in a time that does not tell where the difference is.
fn same(shown: &str, token: &str) -> bool {
    shown.as_bytes().ct_eq(token.as_bytes()).into()
}

/// Says of every answer that it is what its type says, and that nothing in it may run.
pub(super) async fn harmless(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(CONTENT_POLICY));
    answer
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn asked(target: &str, hosts: &[&str]) -> bool {
        let names = Names::new(&["Orchestrator.Example".to_owned()]);
        let request =
            hosts.iter().fold(Request::get(target), |request, host| request.header(header::HOST, *host));
        names.are_meant(&request.body(Body::empty()).expect("a request"))
    }

    #[test]
    fn a_service_is_asked_by_its_addresses_and_names_alone() {
        let own = nix::unistd::gethostname().expect("a name").into_string().expect("text");
        let good = [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[2001:db8::1]",
            "192.0.2.7",
            "orchestrator.example:8080",
            "orchestrator.example.",
            &own,
        ];
        for host in good {
            assert!(asked("/livez", &[host]), "{host}");
        }
        let bad = [
            "example.org",
            "example.org:8080",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "a@localhost",
            "",
            " ",
            "127.0.0.1@example.org",
            "localhost:80:80",
            "orchestrator.example.org",
        ];
        for host in bad {
            assert!(!asked("/livez", &[host]), "{host}");
        }
        assert!(!asked("/livez", &[]) && !asked("/livez", &["localhost", "localhost"]));
        // What the target says wins (RFC 9112, 3.2.2).
        assert!(asked("http://localhost/livez", &["localhost"]));
        assert!(!asked("http://example.org/livez", &["localhost"]));
    }

    #[test]
    fn a_token_is_the_same_or_not() {
        assert!(same("secret", "secret"));
        for other in ["", "secre", "secrets", "Secret"] {
            assert!(!same(other, "secret"), "{other}");
        }
    }
}
