//! Accepts connections and passes them to actix-web.
//!
//! Assembled from the parts of actix-web's `HttpServer`, which does not allow a wrapper around the connection such as
//! [`Connection`].

use std::{io, net, time::Duration};

use actix_http::{ConnectionType, HttpMessage, HttpService, Protocol, Request, error::DispatchError};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    App, Error, HttpRequest, ResponseError,
    dev::{AppConfig, Server, ServiceRequest},
    error::InternalError,
    middleware::from_fn,
    web,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

use super::{
    connection::{Connection, Shared, Timeouts},
    malformed::HEAD_TIMEOUT,
    read_turns::ReadTurns,
};
use crate::http::{
    connections::{ConnectionHandle, Connections, SPARE},
    documents::SharedDocuments,
    error::ApiError,
    middleware::{REQUEST_ID, RequestId, access_log, pipeline},
    openapi,
    request::body,
    route, routes,
    state::{AppState, Settings},
};

/// Keep-alive timeout. Longer than the 60 s of common proxies: if the server closed first, a proxy could send a request into
/// a closing connection.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Time for a client to close its side after `Connection: close`.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to flush finished answers at shutdown.
const FLUSH_SECONDS: u64 = 2;

/// TLS is boxed, because its state is large.
type Stream = Connection<Either<TcpStream, Box<TlsStream<TcpStream>>>>;

/// The server, which runs while it is awaited. `begin` is called once, on the thread of the handlers.
///
/// # Errors
/// [`io::Error`] when TLS cannot be set up or the listener cannot be used.
pub(crate) fn listen(
    listener: net::TcpListener,
    state: AppState,
    begin: impl Fn() + Clone + Send + 'static,
) -> io::Result<Server> {
    let tls = state.tls.clone().map(|tls| tls.server_config()).transpose().map_err(io::Error::other)?;
    let acceptor = tls.map(TlsAcceptor::from);
    let builder = Server::build()
        .workers(1)
        // Further connections wait to be accepted. From `max_connections` on, each new connection closes an idle one.
        .max_concurrent_connections(state.settings.max_connections.get().saturating_add(SPARE))
        .shutdown_timeout(FLUSH_SECONDS)
        // The caller handles signals.
        .disable_signals();
    let ending = builder.graceful_shutdown_signal();
    let data = web::Data::new(state);
    let service = move || {
        begin();
        let (acceptor, data, ending) = (acceptor.clone(), data.clone(), ending.clone());
        let expecting = data.clone();
        let turns = ReadTurns::default();
        actix_web::rt::spawn(turns.clone().drive());
        let shared = Shared { metrics: data.metrics.clone(), timeouts: timeouts(&data.settings), turns };
        let connections = Connections::new(data.settings.max_connections.get());
        let app = App::new()
            .app_data(data.clone())
            .app_data(SharedDocuments::new(&openapi::DOCUMENTS))
            .wrap(from_fn(|request: ServiceRequest, next| {
                pipeline::handle(routes::find(request.method(), request.path()), request, next)
            }))
            .configure(|app| route::register(&routes::ROUTES, data.only_operates, app))
            .default_service(web::to(not_found));
        let http = HttpService::build()
            .client_request_timeout(HEAD_TIMEOUT)
            .client_disconnect_timeout(CLOSE_TIMEOUT)
            .keep_alive(KEEP_ALIVE)
            // With the default, a disconnect during prefill is noticed at the next write (measured: 15 s against 1 s). The
            // price is that a client cannot close its sending side before it has the answer.
            .h1_allow_half_closed(false)
            .expect(move |request| std::future::ready(continue_or_refuse(request, &expecting)))
            .on_connect_ext(|connection: &Stream, data| {
                data.insert(connection.handle().clone());
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

/// Refuses `Expect: 100-continue` for a body that is too large. By default actix-web accepts all, and clients would send
/// megabytes only to be refused.
fn continue_or_refuse(request: Request, state: &AppState) -> Result<Request, Error> {
    let Err(error) = body::check_length(request.headers(), state.settings.body_limit) else {
        return Ok(request);
    };
    let id = RequestId::of(request.headers());
    access_log::log_unparsed(&state.metrics, request.peer_addr(), &id, &error, true);
    let mut answer = error.error_response();
    answer.head_mut().set_connection_type(ConnectionType::Close);
    answer.headers_mut().insert(REQUEST_ID, id.to_header());
    Err(InternalError::from_response(error, answer).into())
}

/// Sets up an accepted connection: socket options, TLS and limits.
async fn accept(
    io: TcpStream,
    acceptor: Option<TlsAcceptor>,
    shared: Shared,
    handle: ConnectionHandle,
) -> Result<(Stream, Protocol, Option<net::SocketAddr>), DispatchError> {
    // Nagle's algorithm would delay the small write of a token until the previous one is acknowledged.
    io.set_nodelay(true)?;
    let peer = io.peer_addr().ok();
    let io = match acceptor {
        Some(acceptor) => {
            let handshake = timeout(HEAD_TIMEOUT, acceptor.accept(io));
            let io = handle.closing().run_until_cancelled(handshake).await;
            let io = io.and_then(Result::ok).ok_or(io::ErrorKind::TimedOut);
            Either::Right(Box::new(io.map_err(io::Error::from)??))
        }
        None => Either::Left(io),
    };
    let connection = Connection::new(io, peer, shared, handle);
    Ok((connection, Protocol::Http1, peer))
}

fn timeouts(settings: &Settings) -> Timeouts {
    Timeouts {
        write: settings.write_timeout,
        head: HEAD_TIMEOUT,
        idle: (KEEP_ALIVE + HEAD_TIMEOUT).max(2 * settings.heartbeat),
    }
}

async fn not_found(request: HttpRequest) -> Result<(), ApiError> {
    Err(ApiError::NotFound { path: request.path().to_owned() })
}
