//! An S3 server on a folder, for tests of stores in buckets: each folder in it is a bucket.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

#[derive(Debug, Parser)]
struct Options {
    folder: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    access_key: String,
    #[arg(long)]
    secret_key: String,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "it says when it serves")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let folder = FileSystem::new(&options.folder).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut service = S3ServiceBuilder::new(folder);
    service.set_auth(SimpleAuth::from_single(options.access_key, options.secret_key.as_str()));
    let service = service.build();
    let listener = TcpListener::bind(options.listen).await.context("listen")?;
    println!("serving");
    loop {
        let (socket, _) = listener.accept().await.context("accept a connection")?;
        let service = service.clone();
        tokio::spawn(async move {
            let serving = Builder::new(TokioExecutor::new());
            // A client that went away is no fault.
            serving.serve_connection(TokioIo::new(socket), service).await.ok();
        });
    }
}
