import java.io.OutputStream;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.opensearch.common.settings.Settings;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.transport.Netty4Plugin;

/**
 * OpenSearch as one node in a process of its own. Its arguments are the folder that
 * it keeps its data in, the port that it answers at (0: a free one) and the most
 * bytes of a request. It prints the port when it is up, and ends when its input does.
 */
public final class Server extends Node {
    private Server(Settings settings) {
        super(InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), null, () -> "node"),
            List.of(Netty4Plugin.class), false);
    }

    public static void main(String[] args) throws Exception {
        Path home = Path.of(args[0]);
        Server server = new Server(Settings.builder()
            .put("path.home", home)
            .put("path.data", home.resolve("data"))
            .put("path.logs", home.resolve("logs"))
            .put("cluster.name", "gatebook")
            .put("node.name", "node")
            .put("node.processors", 1)
            .put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1")
            .put("http.type", "netty4")
            .put("http.port", args[1])
            .put("http.max_content_length", args[2])
            .put("transport.type", "netty4")
            .put("transport.port", "0")
            // What is free on the disk of whoever runs this is not what is tried.
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build());
        server.start();
        System.out.println(server.injector().getInstance(HttpServerTransport.class).boundAddress().publishAddress().getPort());
        System.in.transferTo(OutputStream.nullOutputStream());
        server.close();
    }
}
