//! Accepts connections and passes them to actix-web.
//!
//! Assembled from the parts of actix-web's `HttpServer`, which does not allow a wrapper around the connection such as
//! [`Connection`].

use std::{cell::OnceCell, future::ready, io, net, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use actix_http::{
    ConnectionType, HttpMessage, HttpService, Protocol, Request, Response, body::BoxBody,
    error::DispatchError,
};
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, boxed, fn_factory, fn_service, map_config,
};
use actix_web::{
    App, Error, HttpRequest, ResponseError,
    dev::{AppConfig, Server, ServiceRequest},
    error::InternalError,
    middleware::from_fn,
    web,
};
use futures_util::future::Either as EitherFuture;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

use super::{
    connection::{Connection, Shared, Timeouts},
    http2,
    malformed::HEAD_TIMEOUT,
    plain_http,
    read_turns::ReadTurns,
};
use crate::http::{
    connections::{Connections, SPARE},
    documents::SharedDocuments,
    error::ApiError,
    middleware::{REQUEST_ID, RequestId, access_log, pipeline},
    openapi,
    request::body,
    route, routes,
    state::{AppState, Settings},
    tls,
};

/// Keep-alive timeout. Longer than the 60 s of common proxies: if the server closed first, a proxy could send a request into
/// a closing connection.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Time for a client to close its side after `Connection: close`.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to flush finished answers at shutdown.
const FLUSH_SECONDS: u64 = 2;

/// A socket that the server accepts connections from.
#[derive(Debug)]
pub enum Listener {
    /// With TLS, if the server has a certificate.
    Tcp(net::TcpListener),
    /// A Unix socket, without TLS.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

#[cfg(unix)]
type LocalStream = tokio::net::UnixStream;
#[cfg(not(unix))]
type LocalStream = TcpStream;

/// TLS is boxed, because its state is large.
type Stream = Connection<Either<TcpStream, Either<Box<TlsStream<TcpStream>>, LocalStream>>>;

/// A connection, as actix-http's service takes it.
type Accepted = (Stream, Protocol, Option<net::SocketAddr>);

/// The application, which makes the service for HTTP/1 and HTTP/2.
type Application = boxed::BoxServiceFactory<(), Request, Response<BoxBody>, Response<BoxBody>, ()>;

/// The service of the application.
type ApplicationService = boxed::BoxService<Request, Response<BoxBody>, Response<BoxBody>>;

/// Makes a future that completes when the server begins to shut down.
type Ending = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync>;

/// What the services of all listeners are made from.
#[derive(Clone)]
struct Context<B> {
    acceptor: Option<TlsAcceptor>,
    data: web::Data<AppState>,
    ending: Ending,
    begin: B,
}

/// What all connections share: they run on one thread.
#[derive(Clone)]
struct OfThread {
    shared: Shared,
    connections: Connections,
}

thread_local! {
    static OF_THREAD: OnceCell<OfThread> = const { OnceCell::new() };
}

/// The server, which runs while it is awaited. `begin` is called once, on the thread of the handlers.
///
/// # Errors
/// [`io::Error`] when TLS cannot be set up or a listener cannot be used.
pub(crate) fn listen(
    listeners: Vec<Listener>,
    state: AppState,
    begin: impl Fn() + Clone + Send + 'static,
) -> io::Result<Server> {
    let tls = state.tls.clone().map(|tls| tls.server_config()).transpose().map_err(io::Error::other)?;
    let mut builder = Server::build()
        .workers(1)
        // Further connections wait to be accepted. From `max_connections` on, each new connection closes an idle one.
        .max_concurrent_connections(state.settings.max_connections.get().saturating_add(SPARE))
        .shutdown_timeout(FLUSH_SECONDS)
        // The caller handles signals.
        .disable_signals();
    let (acceptor, signal) = (tls.map(TlsAcceptor::from), builder.graceful_shutdown_signal());
    let ending: Ending = Arc::new(move || {
        let signal = signal.clone();
        Box::pin(async move { signal.notified().await })
    });
    let context = Context { acceptor, data: web::Data::new(state), ending, begin };
    for listener in listeners {
        let context = context.clone();
        builder = match listener {
            Listener::Tcp(listener) => builder.listen("http", listener, move || {
                let (of_thread, acceptor) = (context.of_thread(), context.acceptor.clone());
                let accept = move |io| accept(io, acceptor.clone(), of_thread.clone());
                fn_service(accept).and_then(context.http())
            })?,
            #[cfg(unix)]
            Listener::Unix(listener) => builder.listen_uds("http", listener, move || {
                let of_thread = context.of_thread();
                fn_service(move |io| accept_local(io, of_thread.clone())).and_then(context.http())
            })?,
        };
    }
    Ok(builder.run())
}

impl<B: Fn() + 'static> Context<B> {
    /// What all connections share; made, with a call of `begin`, by the first listener.
    fn of_thread(&self) -> OfThread {
        OF_THREAD.with(|cell| {
            cell.get_or_init(|| {
                (self.begin)();
                let (turns, settings) = (ReadTurns::default(), &self.data.settings);
                actix_web::rt::spawn(turns.clone().drive());
                let metrics = self.data.metrics.clone();
                OfThread {
                    shared: Shared { metrics, timeouts: timeouts(settings), turns },
                    connections: Connections::new(settings.max_connections.get()),
                }
            })
            .clone()
        })
    }

    /// The application behind HTTP/1 and HTTP/2.
    fn http(
        &self,
    ) -> impl ServiceFactory<Accepted, Config = (), Response = (), Error = DispatchError, InitError = ()> + use<B>
    {
        let (app, data, ending) = (Rc::new(self.app()), self.data.clone(), self.ending.clone());
        fn_factory(move || {
            let (app, data, ending) = (Rc::clone(&app), data.clone(), ending.clone());
            async move {
                // Both protocols share it: each would compile the patterns of all routes, 25 ms of a start.
                let app = Rc::new(app.new_service(()).await?);
                let http1 = Rc::new(http1(Rc::clone(&app), data, ending.clone()).new_service(()).await?);
                Ok::<_, ()>(fn_service::<_, _, _, _, _, ()>(move |(io, protocol, peer): Accepted| {
                    match protocol {
                        Protocol::Http2 => {
                            EitherFuture::Left(http2::serve(io, peer, Rc::clone(&app), ending()))
                        }
                        _ => EitherFuture::Right(http1.call((io, protocol, peer))),
                    }
                }))
            }
        })
    }

    /// The application: all routes, with what runs around them.
    fn app(&self) -> Application {
        let data = self.data.clone();
        let only_operates = data.only_operates;
        let app = App::new()
            .app_data(data)
            .app_data(SharedDocuments::new(&openapi::DOCUMENTS))
            .wrap(from_fn(|request: ServiceRequest, next| {
                pipeline::handle(routes::find(request.method(), request.path()), request, next)
            }))
            .configure(|app| route::register(&routes::ROUTES, only_operates, app))
            .default_service(web::to(not_found));
        let app = app
            .into_factory()
            .map(Response::from)
            .map_err(|error: Error| Response::from(error.error_response()));
        boxed::factory(map_config(app, |()| AppConfig::default()))
    }
}

/// `app` behind HTTP/1.
fn http1(
    app: Rc<ApplicationService>,
    data: web::Data<AppState>,
    ending: Ending,
) -> impl ServiceFactory<Accepted, Config = (), Response = (), Error = DispatchError, InitError = ()> {
    HttpService::build()
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(CLOSE_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        // With the default, a disconnect during prefill is noticed at the next write (measured: 15 s against 1 s). The
        // price is that a client cannot close its sending side before it has the answer.
        .h1_allow_half_closed(false)
        .expect(move |request| ready(continue_or_refuse(request, &data)))
        .on_connect_ext(|connection: &Stream, data| {
            data.insert(connection.handle().clone());
        })
        .graceful_shutdown_signal(move || ending())
        .finish(fn_factory(move || ready(Ok::<_, ()>(Rc::clone(&app)))))
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
    OfThread { shared, connections }: OfThread,
) -> Result<Accepted, DispatchError> {
    let handle = connections.enter();
    // Nagle's algorithm would delay the small write of a token until the previous one is acknowledged.
    io.set_nodelay(true)?;
    let peer = io.peer_addr().ok();
    let Some(acceptor) = acceptor else {
        return recognised(Connection::new(Either::Left(io), peer, shared, handle), peer).await;
    };
    let handshake = timeout(HEAD_TIMEOUT, plain_http::handshake(io, acceptor, &shared.metrics));
    let io = handle.closing().run_until_cancelled(handshake).await;
    let io = io.and_then(Result::ok).ok_or(io::ErrorKind::TimedOut).map_err(io::Error::from)??;
    let is_http2 = io.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
    let io = Either::Right(Either::Left(Box::new(io)));
    let mut connection = Connection::new(io, peer, shared, handle);
    if is_http2 {
        connection.set_http2();
        return Ok((connection, Protocol::Http2, peer));
    }
    Ok((connection, Protocol::Http1, peer))
}

/// Sets up a connection of a Unix socket.
#[cfg(unix)]
async fn accept_local(
    io: LocalStream,
    OfThread { shared, connections }: OfThread,
) -> Result<Accepted, DispatchError> {
    let handle = connections.enter();
    handle.set_local_socket();
    recognised(Connection::new(Either::Right(Either::Right(io)), None, shared, handle), None).await
}

/// The connection with the protocol that its client begins with.
async fn recognised(
    mut connection: Stream,
    peer: Option<net::SocketAddr>,
) -> Result<Accepted, DispatchError> {
    let closing = connection.handle().closing().clone();
    let protocol = closing.run_until_cancelled(connection.recognise()).await;
    let protocol = protocol.ok_or(io::ErrorKind::TimedOut).map_err(io::Error::from)??;
    Ok((connection, protocol, peer))
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
