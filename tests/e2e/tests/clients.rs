//! Real clients through real forwards: databases, curl, a server that speaks first, a browser.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::client::{connect, get_kept};
use kftray_e2e::{Forward, Ground, ground};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

/// Both carriers must carry every client.
const TRANSPORTS: [&str; 2] = ["websocket", "spdy"];

#[tokio::test]
async fn psql_runs_queries_and_copies_a_table() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/postgres", ":5432"]).await?;
        let port = forward.port()?.to_string();
        let sql = "select count(*), sum(i) from generate_series(1, 100000) i; copy (select i, md5(i::text) from generate_series(1, 200000) i) to stdout;";
        let mut psql = Command::new("psql");
        psql.env("PGPASSWORD", "kftest").args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port,
            "-AtX",
            "-c",
            sql,
        ]);
        let answer = ground::run(psql).await?;
        let mut lines = answer.lines();
        assert_eq!(lines.next(), Some("100000|5000050000"), "{transport}");
        assert_eq!(lines.count(), 200_000, "{transport}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_cli_pipelines_and_subscribes() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/redis", ":6379"]).await?;
        let port = forward.port()?.to_string();
        let redis = |arguments: &[&str]| {
            let mut command = Command::new("redis-cli");
            command.args(["-p", &port]).args(arguments);
            command
        };
        assert_eq!(ground::run(redis(&["set", "e2e", transport])).await?.trim(), "OK");
        assert_eq!(ground::run(redis(&["get", "e2e"])).await?.trim(), transport);
        let answer = ground::run(redis(&[
            "eval",
            "for i=1,20000 do redis.call('set','k'..i,i) end return redis.call('dbsize')",
            "0",
        ]))
        .await?;
        ensure!(
            answer.trim().trim_start_matches("(integer) ").parse::<u32>()? >= 20_000,
            "{transport}: {answer}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn curl_reaches_nginx_on_ipv4_and_ipv6() -> Result<()> {
    let ground = Ground::from_env()?;
    let forward = Forward::ready(&ground, &["svc/nginx", ":80"]).await?;
    let port = forward.port()?;
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("http://{host}:{port}/"),
        ]);
        assert_eq!(ground::run(curl).await?, "200", "{host}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_the_client_says_anything() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":9004"]).await?;
        let mut stream = BufReader::new(connect(forward.port()?).await?);
        let mut line = String::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_line(&mut line))
            .await
            .context("no banner")??;
        ensure!(line.starts_with("220 web-"), "{transport}: {line}");
        stream.get_mut().write_all(b"hello\r\n").await?;
        line.clear();
        tokio::time::timeout(Duration::from_secs(10), stream.read_line(&mut line))
            .await
            .context("no answer")??;
        assert_eq!(line, "250 hello\r\n", "{transport}");
    }
    Ok(())
}

#[tokio::test]
async fn a_browser_with_six_kept_connections_loads_a_page_of_sixty_parts() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        let mut connections = JoinSet::new();
        for _ in 0..6 {
            connections.spawn(async move {
                let mut stream = connect(port).await?;
                let mut rest = Vec::new();
                for part in 1..=10 {
                    let length = part * 7_919;
                    let body = get_kept(&mut stream, &mut rest, &format!("/bytes?n={length}")).await?;
                    ensure!(
                        body.len() == length && kftray_e2e::stream::first_difference(0, &body).is_none(),
                        "part {part} differs"
                    );
                }
                anyhow::Ok(())
            });
        }
        while let Some(joined) = connections.join_next().await {
            joined?.with_context(|| transport.to_owned())?;
        }
    }
    Ok(())
}
