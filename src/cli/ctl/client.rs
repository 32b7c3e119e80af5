//! One cluster as its API shows it: calls to this node, calls to a member, and the members' list.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Role;
use crate::cli::Api;
use crate::cli::credentials;
use crate::config::Config;

/// A read is answered from memory; one that takes longer is answered by nobody.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// A switchover is waited for by the API for twice ten seconds, a restart for as long as PostgreSQL takes.
const WRITE_PATIENCE: Duration = Duration::from_secs(600);

/// A way to a cluster.
#[derive(Debug)]
pub struct Cluster {
    http: reqwest::Client,
    url: String,
    trust: Trust,
}

/// What somebody comes for. Reading needs no certificate, and making one costs a moment and 64 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// To look.
    Look,
    /// To change something.
    Act,
}

/// What the members take us for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// One of theirs: TLS on any of their ports, with a client certificate.
    Member,
    /// Anybody: the URL is used as it was given.
    Stranger,
}

/// An answer of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// The body, without the HTML around an error.
    pub text: String,
    /// The server's clock, to the second.
    pub date: Option<Timestamp>,
}

impl Answer {
    /// Whether it is a yes.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// For a program.
    pub fn as_json(&self) -> Value {
        json!({ "code": self.code, "message": self.text })
    }
}

/// One row of `/cluster`.
#[derive(Debug, Clone)]
pub struct Member(pub Value);

impl Member {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or("")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// Its role, in the words of `/cluster`.
    pub fn role(&self) -> &str {
        self.text("role")
    }

    /// Its state.
    pub fn state(&self) -> &str {
        self.text("state")
    }

    /// Its `api_url`, up to the port.
    fn base(&self) -> &str {
        self.text("api_url").trim_end_matches('/').trim_end_matches("/patroni")
    }

    /// Host and port of its PostgreSQL.
    pub fn address(&self) -> Option<(String, u16)> {
        let port = self.0.get("port").and_then(Value::as_u64)?;
        Some((self.text("host").to_owned(), u16::try_from(port).ok()?))
    }

    /// The port of its API.
    pub fn api_port(&self) -> Option<u16> {
        self.base().rsplit_once(':')?.1.parse().ok()
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        matches!(self.role(), "leader" | "standby_leader")
    }

    /// Whether it plays this part.
    pub fn plays(&self, role: Role) -> bool {
        match role {
            Role::Any => true,
            Role::Leader => self.leads(),
            Role::Primary => self.role() == "leader",
            Role::StandbyLeader => self.role() == "standby_leader",
            Role::Replica => !self.leads(),
        }
    }

    /// Whether a setting waits for a restart there.
    pub fn is_restart_pending(&self) -> bool {
        self.0.get("pending_restart").and_then(Value::as_bool) == Some(true)
    }
}

/// `/cluster`.
#[derive(Debug, Clone)]
pub struct Picture {
    /// As it was answered.
    pub page: Value,
    /// The members.
    pub members: Vec<Member>,
}

impl Picture {
    /// The name of the cluster.
    pub fn scope(&self) -> &str {
        self.page.get("scope").and_then(Value::as_str).unwrap_or("")
    }

    /// Who leads.
    pub fn leader(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.leads())
    }

    /// The member of this name.
    ///
    /// # Errors
    /// There is none; the error names those that there are.
    pub fn member(&self, name: &str) -> anyhow::Result<&Member> {
        let names: Vec<&str> = self.members.iter().map(Member::name).collect();
        let found = self.members.iter().find(|member| member.name() == name);
        found.with_context(|| {
            format!("{name} is no member of {}: there are {}", self.scope(), names.join(", "))
        })
    }

    /// The members named, or all that play this part when none is.
    ///
    /// # Errors
    /// A name that no member has, or nobody plays the part.
    pub fn chosen(&self, names: &[String], role: Role) -> anyhow::Result<Vec<&Member>> {
        let named: Vec<&Member> = if names.is_empty() {
            self.members.iter().collect()
        } else {
            names.iter().map(|name| self.member(name)).collect::<anyhow::Result<_>>()?
        };
        let chosen: Vec<&Member> = named.into_iter().filter(|member| member.plays(role)).collect();
        if chosen.is_empty() {
            bail!("no member of {} fits", self.scope());
        }
        Ok(chosen)
    }
}

impl Cluster {
    /// The cluster behind this API: the node's own unless another was named.
    ///
    /// # Errors
    /// There is neither a URL nor an environment, or the environment's secrets cannot be used.
    pub fn new(api: &Api, config: Option<&Config>, errand: Errand) -> anyhow::Result<Self> {
        let own = config.map(|config| {
            format!("https://{}", std::net::SocketAddr::new(config.local_address(), config.bound.api))
        });
        let url = api
            .url
            .clone()
            .or(own)
            .context("which API? name it with --api URL, or run this inside a node")?;
        let builder =
            reqwest::Client::builder().no_proxy().timeout(WRITE_PATIENCE).connect_timeout(READ_PATIENCE);
        let (builder, trust) = match config.filter(|_| errand == Errand::Act) {
            Some(config) => {
                let bundle = credentials::own_bundle(config)?;
                (builder.tls_backend_preconfigured(Arc::unwrap_or_clone(bundle.peer_client)), Trust::Member)
            }
            // Nothing secret is sent, and nothing is believed that anybody may not say.
            None => (builder.tls_danger_accept_invalid_certs(true), Trust::Stranger),
        };
        let http = builder.build().context("could not make an HTTP client")?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), trust })
    }

    fn base_of<'a>(&'a self, member: Option<&'a Member>) -> String {
        let base = member.map_or(self.url.as_str(), Member::base);
        match self.trust {
            // Every port of ours speaks TLS, whatever the URL for the public says.
            Trust::Member => base.replacen("http://", "https://", 1),
            Trust::Stranger => base.to_owned(),
        }
    }

    /// Asks for a page.
    ///
    /// # Errors
    /// No answer, or not a yes.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base_of(None));
        let answer = self.send(self.http.get(&url).timeout(READ_PATIENCE), &url).await?;
        if !answer.is_success() {
            bail!("{url}: {} {}", answer.code, answer.text);
        }
        serde_json::from_str(&answer.text)
            .with_context(|| format!("{url} does not answer like a node of ours"))
    }

    /// A member's own page, whatever its health.
    ///
    /// # Errors
    /// No answer, or not one of a node.
    pub async fn page_of(&self, member: &Member) -> anyhow::Result<Value> {
        let url = format!("{}/patroni", self.base_of(Some(member)));
        let answer = self.send(self.http.get(&url).timeout(READ_PATIENCE), &url).await?;
        serde_json::from_str(&answer.text).with_context(|| format!("{url} does not answer like a node"))
    }

    /// The members.
    ///
    /// # Errors
    /// No answer.
    pub async fn picture(&self) -> anyhow::Result<Picture> {
        let page = self.get("/cluster").await?;
        let rows = page.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(Picture { page, members: rows.into_iter().map(Member).collect() })
    }

    /// Asks for something to be done, here or at a member.
    ///
    /// # Errors
    /// No answer. A refusal is an answer.
    pub async fn call(
        &self,
        member: Option<&Member>,
        (method, path): (reqwest::Method, &str),
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let url = format!("{}{path}", self.base_of(member));
        let request = self.http.request(method, &url);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.send(request, &url).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &str) -> anyhow::Result<Answer> {
        let unreachable = || format!("could not read {url} (does the node run?)");
        let answer = request.send().await.map_err(reqwest::Error::without_url).with_context(unreachable)?;
        let code = answer.status().as_u16();
        let date =
            answer.headers().get(reqwest::header::DATE).and_then(|date| http_date(date.to_str().ok()?));
        let text = answer.text().await.map_err(reqwest::Error::without_url).with_context(unreachable)?;
        Ok(Answer { code, text: plain(&text), date })
    }
}

/// `Fri, 27 Nov 2026 14:23:44 GMT`.
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

/// The explanation in an HTML page of an error; anything else as it is.
fn plain(text: &str) -> String {
    let explanation = || {
        let (_, rest) = text.split_once("Error code explanation: ")?;
        Some(rest.split('<').next()?.trim_end_matches('.').to_owned())
    };
    if text.starts_with("<!DOCTYPE") {
        explanation().unwrap_or_else(|| text.to_owned())
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let member = |name: &str, role: &str| Member(json!({"name": name, "role": role}));
        let members = vec![member("n0", "leader"), member("n1", "quorum_standby"), member("n2", "replica")];
        Picture { page: json!({"scope": "demo"}), members }
    }

    #[test]
    fn members_are_chosen_by_name_and_by_role() {
        let picture = picture();
        let names = |names: &[&str], role| -> Vec<String> {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            picture.chosen(&names, role).unwrap().iter().map(|m| m.name().to_owned()).collect()
        };
        assert_eq!(names(&[], Role::Any), ["n0", "n1", "n2"]);
        assert_eq!(names(&[], Role::Replica), ["n1", "n2"]);
        assert_eq!(names(&["n2"], Role::Any), ["n2"]);
        assert!(picture.chosen(&[], Role::StandbyLeader).is_err());
        let error = picture.chosen(&["n9".to_owned()], Role::Any).unwrap_err().to_string();
        assert_eq!(error, "n9 is no member of demo: there are n0, n1, n2");
    }

    #[test]
    fn the_clock_of_a_server_is_read() {
        assert_eq!(http_date("Fri, 27 Nov 2026 14:23:44 GMT").map(Timestamp::as_second), Some(1_795_789_424));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn an_error_page_is_told_in_its_own_words() {
        let page = "<!DOCTYPE HTML>\n<html><p>Error code explanation: 501 - Server does not support this operation.</p>";
        assert_eq!(plain(page), "501 - Server does not support this operation");
        assert_eq!(plain("restarted successfully"), "restarted successfully");
    }
}
