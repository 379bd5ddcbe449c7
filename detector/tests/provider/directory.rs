//! The account directory's client against a directory that knows, does not know, lies, and hangs.

use std::time::{Duration, Instant};

use davy_decision::account::{AccountId, Cents, DropletId};
use davy_decision::time::Span;
use davy_detector::account::directory::{Directory, DirectoryError, GrpcDirectory};
use davy_proto::v1;
use davy_proto::v1::account_directory_server::{AccountDirectory, AccountDirectoryServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::support::{nobody, now};

/// Answers by the account's name.
struct Accounts;

fn facts() -> v1::AccountFacts {
    let as_of_unix_ms = now().unix_ms();
    v1::AccountFacts {
        first_payment_at: Some(v1::MaybeTime {
            as_of_unix_ms,
            unix_ms: None,
        }),
        run_rate: Some(v1::RunRate {
            as_of_unix_ms,
            cents: Some(5_000),
        }),
        ..v1::AccountFacts::default()
    }
}

fn paid(settled_cents: i64, disputed_cents: i64) -> Option<v1::Payments> {
    Some(v1::Payments {
        as_of_unix_ms: now().unix_ms(),
        settled_cents: Some(settled_cents),
        disputed_cents,
        last_invoice: None,
    })
}

#[tonic::async_trait]
impl AccountDirectory for Accounts {
    async fn look_up_account(
        &self,
        request: Request<v1::LookUpAccountRequest>,
    ) -> Result<Response<v1::LookUpAccountResponse>, Status> {
        let (mut account, mut facts) = (request.into_inner().account, facts());
        match account.as_str() {
            "known" => {}
            "without" => facts = v1::AccountFacts::default(),
            "unknown" => return Err(Status::not_found("no such account")),
            "broken" => return Err(Status::internal("the database is down")),
            "others" => account = "somebody-else".to_owned(),
            "negative" => facts.payments = paid(-5, 0),
            "disputed" => facts.payments = paid(5, 6),
            "future" => {
                facts.created_at = Some(v1::CreatedAt {
                    as_of_unix_ms: now().unix_ms(),
                    unix_ms: Some(now().after(Span::days(1)).unix_ms()),
                });
            }
            "twice" => {
                let droplet = v1::InventoryDroplet {
                    droplet: "d-1".to_owned(),
                    created_unix_ms: Some(1),
                    vcpus: 1,
                };
                facts.droplets = Some(v1::DropletInventory {
                    as_of_unix_ms: now().unix_ms(),
                    droplets: vec![droplet.clone(), droplet],
                });
            }
            _ => std::future::pending().await,
        }
        Ok(Response::new(v1::LookUpAccountResponse {
            account,
            facts: Some(facts),
        }))
    }

    async fn find_droplet(
        &self,
        request: Request<v1::FindDropletRequest>,
    ) -> Result<Response<v1::FindDropletResponse>, Status> {
        let account = match request.into_inner().droplet.as_str() {
            "d-1" => "known",
            "d-odd" => "no id",
            "d-empty" => "",
            "d-broken" => return Err(Status::internal("the database is down")),
            _ => return Err(Status::not_found("no such droplet")),
        };
        Ok(Response::new(v1::FindDropletResponse {
            account: account.to_owned(),
        }))
    }
}

async fn directory() -> GrpcDirectory {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AccountDirectoryServer::new(Accounts))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    GrpcDirectory::open(&url, Duration::from_millis(500)).unwrap()
}

async fn refused(account: &str) -> DirectoryError {
    let account = AccountId::try_from(account).unwrap();
    directory().await.facts(&account).await.unwrap_err()
}

#[tokio::test]
async fn what_is_known_comes_and_what_is_not_stays_unknown() {
    let directory = directory().await;
    let facts = directory.facts(&"known".try_into().unwrap()).await.unwrap();
    assert_eq!(facts.run_rate.unwrap().value, Cents(5_000));
    assert_eq!(facts.first_payment_at.unwrap().value, None);
    assert_eq!(facts.high_cpu_allowed, None);
    assert_eq!(facts.payments, None);
    let facts = directory
        .facts(&"without".try_into().unwrap())
        .await
        .unwrap();
    assert_eq!(facts, davy_decision::account::Facts::default());
}

#[tokio::test]
async fn an_account_that_is_not_known_is_told_from_a_directory_that_fails() {
    let error = refused("unknown").await;
    assert_eq!(
        error.to_string(),
        "the account directory knows no account unknown"
    );
    let error = refused("broken").await;
    assert!(
        matches!(error, DirectoryError::Unreachable { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("the database is down"),
        "{error}"
    );
}

#[tokio::test]
async fn what_cannot_be_is_refused_in_a_sentence() {
    for (account, says) in [
        (
            "others",
            "asked for account others, it answered for \"somebody-else\"",
        ),
        ("negative", "is -5"),
        ("disputed", "no more can be disputed than was settled"),
        ("future", "no fact is of the future"),
        ("twice", "d-1"),
    ] {
        let error = refused(account).await;
        assert!(matches!(error, DirectoryError::Rubbish { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_directory_that_hangs_or_is_not_there_is_unreachable_in_time() {
    let begun = Instant::now();
    let error = refused("hang").await;
    assert!(
        matches!(error, DirectoryError::Unreachable { .. }),
        "{error}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let nobody = GrpcDirectory::open(&nobody().await, Duration::from_millis(500)).unwrap();
    let error = nobody
        .facts(&"known".try_into().unwrap())
        .await
        .unwrap_err();
    assert!(
        matches!(error, DirectoryError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_owner_is_found_or_there_is_none_or_the_answer_is_rubbish() {
    let directory = directory().await;
    let owner = async |droplet: &str| {
        directory
            .owner(&DropletId::try_from(droplet).unwrap())
            .await
    };
    assert_eq!(owner("d-1").await, Ok(Some("known".try_into().unwrap())));
    assert_eq!(owner("d-9").await, Ok(None));
    for odd in ["d-odd", "d-empty"] {
        let error = owner(odd).await.unwrap_err();
        assert!(matches!(error, DirectoryError::Rubbish { .. }), "{error}");
    }
    let error = owner("d-broken").await.unwrap_err();
    assert!(
        matches!(error, DirectoryError::Unreachable { .. }),
        "{error}"
    );
}
