//! The server as actix runs it: who accepts a connection, and how long one may take for what.
//!
//! Put together from the parts that actix-web's `HttpServer` is made of, because that lets nobody stand between itself and
//! a connection, as `connection` has to.

use std::{io, net, time::Duration};

use actix_http::{ConnectionType, HttpMessage, HttpService, Protocol, Request, error::DispatchError};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    App, Error, ResponseError,
    dev::{AppConfig, Server},
    error::InternalError,
    middleware::from_fn,
    web,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

use super::{
    connection::{Connection, Patience, Shared},
    malformed::HEAD_PATIENCE,
    read_turns::ReadTurns,
};
use crate::http::{
    connections::{Connections, Place, SPARE},
    middleware::{
        access_log, auth,
        request_id::{REQUEST_ID, RequestId},
    },
    request::body,
    routes::routes,
    state::{AppState, Settings},
};

/// For the next request on a connection. Proxies give up idle connections after 60 s at most by default; whoever does
/// so second sends a request into a closing connection, and that should not be them.
const IDLE_PATIENCE: Duration = Duration::from_secs(75);

/// For a client to close a connection that we have said we close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// For the last bytes of finished answers to leave, at shutdown.
const FLUSH_SECONDS: u64 = 2;

/// What is read from and written to. A connection without TLS should not be as large as one with it.
type Stream = Connection<Either<TcpStream, Box<TlsStream<TcpStream>>>>;

/// The server, which runs while it is awaited. `begin` is called once, on the thread of the handlers.
pub(crate) fn listen(
    listener: net::TcpListener,
    state: AppState,
    begin: impl Fn() + Clone + Send + 'static,
) -> io::Result<Server> {
    let tls = state.tls.clone().map(|tls| tls.server_config()).transpose().map_err(io::Error::other)?;
    let acceptor = tls.map(TlsAcceptor::from);
    let builder = Server::build()
        .workers(1)
        // Beyond it, connections wait to be accepted; at the limit of the settings, an idle one is closed for each.
        .max_concurrent_connections(state.settings.max_connections.get().saturating_add(SPARE))
        .shutdown_timeout(FLUSH_SECONDS)
        // Who ends the process decides what a signal means.
        .disable_signals();
    let ending = builder.graceful_shutdown_signal();
    let data = web::Data::new(state);
    let service = move || {
        begin();
        let (acceptor, data, ending) = (acceptor.clone(), data.clone(), ending.clone());
        let expecting = data.clone();
        let turns = ReadTurns::default();
        actix_web::rt::spawn(turns.clone().drive());
        let shared = Shared { metrics: data.metrics.clone(), patience: patience(&data.settings), turns };
        let connections = Connections::new(data.settings.max_connections.get());
        let app = App::new().app_data(data.clone()).wrap(from_fn(auth::pass)).configure(routes);
        let http = HttpService::build()
            .client_request_timeout(HEAD_PATIENCE)
            .client_disconnect_timeout(CLOSE_PATIENCE)
            .keep_alive(IDLE_PATIENCE)
            // With the default, a client that leaves during prefill is noticed when we next write (measured: 15 s against
            // 1 s). We would rather lose clients that close their sending side and still want an answer.
            .h1_allow_half_closed(false)
            .expect(move |request| std::future::ready(continue_or_refuse(request, &expecting)))
            .on_connect_ext(|connection: &Stream, data| {
                data.insert(connection.place().clone());
            })
            .graceful_shutdown_signal(move || {
                let ending = ending.clone();
                async move { ending.notified().await }
            })
            .finish(map_config(app.into_factory().map_err(|error: Error| error.error_response()), |_| {
                AppConfig::default()
            }));
        fn_service(move |io| accept(io, acceptor.clone(), shared.clone(), connections.enter())).and_then(http)
    };
    Ok(builder.listen("http", listener, service)?.run())
}

/// Whether a client with `Expect: 100-continue` is asked for its body. By default actix-web always asks, and a client sends
/// megabytes only to learn that they are too many.
fn continue_or_refuse(request: Request, state: &AppState) -> Result<Request, Error> {
    let Err(error) = body::check_length(request.headers(), state.settings.body_limit) else {
        return Ok(request);
    };
    let id = RequestId::of(request.headers());
    access_log::refused_unread(&state.metrics, request.peer_addr(), &id, &error, true);
    let mut answer = error.error_response();
    answer.head_mut().set_connection_type(ConnectionType::Close);
    answer.headers_mut().insert(REQUEST_ID, id.to_header());
    Err(InternalError::from_response(error, answer).into())
}

/// Makes of a client that has come one that can be talked to.
async fn accept(
    io: TcpStream,
    acceptor: Option<TlsAcceptor>,
    shared: Shared,
    place: Place,
) -> Result<(Stream, Protocol, Option<net::SocketAddr>), DispatchError> {
    // A token is a small write, which Nagle's algorithm would hold back until the one before is acknowledged.
    io.set_nodelay(true)?;
    let peer = io.peer_addr().ok();
    let io = match acceptor {
        Some(acceptor) => {
            let shaken = timeout(HEAD_PATIENCE, acceptor.accept(io));
            let shaken = place.closing().run_until_cancelled(shaken).await;
            let shaken = shaken.and_then(Result::ok).ok_or(io::ErrorKind::TimedOut);
            Either::Right(Box::new(shaken.map_err(io::Error::from)??))
        }
        None => Either::Left(io),
    };
    let connection = Connection::new(io, peer, shared, place);
    Ok((connection, Protocol::Http1, peer))
}

fn patience(settings: &Settings) -> Patience {
    Patience {
        read: settings.read_patience,
        head: HEAD_PATIENCE,
        idle: (IDLE_PATIENCE + HEAD_PATIENCE).max(2 * settings.heartbeat),
    }
}
