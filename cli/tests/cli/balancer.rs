//! A TLS listener in the load balancer's place: it asks for a user's certificate and acts by the name in SNI.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rssh_mqtt::IdentityFiles;
use rssh_proto::HostPort;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::pki::identity;

pub(crate) const BANNER: &str = "SSH-2.0-OpenSSH_9.2 device-1";

/// What happens to a connection by one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Closed after the handshake, as a name that HAProxy refuses.
    Refuse,
    /// An SSH banner, then everything comes back until the client has ended.
    Ssh,
    /// Nothing is said first; everything comes back.
    Echo,
    /// Nothing is said and nothing is closed.
    Silence,
    /// Something that is not SSH.
    Http,
}

/// Decides by the name and the count of connections by that name so far.
pub(crate) type Acts = fn(&str, usize) -> Act;

pub(crate) struct Balancer {
    pub(crate) address: HostPort,
    names: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    pub(crate) fn start(files: &IdentityFiles, clients: &Path, acts: Acts) -> Self {
        let acceptor = acceptor(files, clients);
        let names = Arc::new(Mutex::new(Vec::new()));
        let seen = names.clone();
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel::<SocketAddr>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let serve = async {
                    loop {
                        let (socket, _) = listener.accept().await.unwrap();
                        tokio::spawn(connection(socket, acceptor.clone(), seen.clone(), acts));
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address: is_bound.recv().unwrap().into(),
            names,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The names by which clients came, one for each finished handshake.
    pub(crate) fn names(&self) -> Vec<String> {
        self.names.lock().unwrap().clone()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn acceptor(files: &IdentityFiles, clients: &Path) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(clients).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let own = identity(files);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.certificates, own.key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn connection(socket: TcpStream, acceptor: TlsAcceptor, names: Arc<Mutex<Vec<String>>>, acts: Acts) {
    let Ok(mut stream) = acceptor.accept(socket).await else {
        return;
    };
    let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
    let nth = {
        let mut names = names.lock().unwrap();
        names.push(name.clone());
        names.iter().filter(|known| **known == name).count() - 1
    };
    match acts(&name, nth) {
        Act::Refuse => return,
        Act::Ssh => stream
            .write_all(format!("{BANNER}\r\n").as_bytes())
            .await
            .unwrap_or_default(),
        Act::Http => {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = stream.shutdown().await;
            return;
        }
        Act::Echo => {}
        Act::Silence => std::future::pending().await,
    }
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
            }
        }
    }
    // Said once the client has ended its half: so a test sees that the other half still carries.
    let _ = stream.write_all(b"bye").await;
    let _ = stream.shutdown().await;
}
