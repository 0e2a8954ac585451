//! Jobs outlive the server.

use cairn_server::api::{image::Image, job::Job};

use crate::harness::{PATIENCE, Server};

async fn jobs(server: &Server) -> Vec<Job> {
    server.api().get("/api/v1/jobs").await.unwrap()
}

#[tokio::test]
async fn a_job_that_a_kill_cut_short_is_done_after_the_next_start() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    server.add_image("os", 2).await;
    server.api().delete("/api/v1/images/os/versions/1").await.unwrap();
    let folder = server.kill().await;

    let server = Server::start_in(folder).await;
    let began = std::time::Instant::now();
    loop {
        let removal =
            jobs(&server).await.into_iter().find(|job| job.kind == "remove-version").unwrap();
        if removal.state.word() == "done" {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{removal:?}");
    }
    let image: Image = server.api().get("/api/v1/images/os").await.unwrap();
    assert_eq!(image.versions.len(), 1);
}
