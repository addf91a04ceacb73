import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.PrintStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.avro.Conversions;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Prints the rows of a compacted topic: of each key, the newest committed record, unless that is
 * a tombstone. A line is the partition, the number of records that the key had, the key and the
 * value, with tabs between. Keys and values with Confluent's frame are Avro and printed as JSON;
 * other keys are UTF-8.
 *
 * Arguments: bootstrap servers, address of the schema registry, topic.
 */
public class Rows {
  private static final class Row {
    int partition;
    int records;
    byte[] value;
  }

  private final HttpClient http = HttpClient.newHttpClient();
  private final Map<Integer, GenericDatumReader<Object>> readers = new HashMap<>();
  private final GenericData model = new GenericData();
  private final String registry;

  private Rows(String registry) {
    this.registry = registry;
    model.addLogicalTypeConversion(new Conversions.DecimalConversion());
  }

  public static void main(String[] args) throws Exception {
    Properties config = new Properties();
    config.put("bootstrap.servers", args[0]);
    config.put("isolation.level", "read_committed");
    config.put("enable.auto.commit", "false");
    Map<ByteBuffer, Row> rows = new LinkedHashMap<>();
    try (KafkaConsumer<byte[], byte[]> consumer =
        new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
      List<TopicPartition> partitions = new ArrayList<>();
      consumer.partitionsFor(args[2]).forEach(p -> partitions.add(new TopicPartition(p.topic(), p.partition())));
      consumer.assign(partitions);
      consumer.seekToBeginning(partitions);
      Map<TopicPartition, Long> ends = ends(config, partitions);
      while (ends.entrySet().stream().anyMatch(e -> consumer.position(e.getKey()) < e.getValue())) {
        for (ConsumerRecord<byte[], byte[]> r : consumer.poll(Duration.ofMillis(100))) {
          Row row = rows.computeIfAbsent(ByteBuffer.wrap(r.key()), k -> new Row());
          if (row.records > 0 && row.partition != r.partition()) {
            throw new IllegalStateException("a key in the partitions " + row.partition + " and " + r.partition());
          }
          row.partition = r.partition();
          row.records++;
          row.value = r.value();
        }
      }
    }
    Rows printer = new Rows(args[1]);
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    for (Map.Entry<ByteBuffer, Row> e : rows.entrySet()) {
      Row row = e.getValue();
      if (row.value != null) {
        out.println(row.partition + "\t" + row.records + "\t" + printer.text(e.getKey().array()) + "\t" + printer.text(row.value));
      }
    }
    out.flush();
  }

  // The end that only a reader of uncommitted records sees: this one then waits for the marker of
  // the last transaction.
  private static Map<TopicPartition, Long> ends(Properties config, List<TopicPartition> partitions) {
    Properties uncommitted = new Properties();
    uncommitted.putAll(config);
    uncommitted.put("isolation.level", "read_uncommitted");
    try (KafkaConsumer<byte[], byte[]> consumer =
        new KafkaConsumer<>(uncommitted, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
      return consumer.endOffsets(partitions);
    }
  }

  private String text(byte[] data) throws IOException, InterruptedException {
    if (data.length < 5 || data[0] != 0) {
      return new String(data, StandardCharsets.UTF_8);
    }
    GenericDatumReader<Object> reader = reader(ByteBuffer.wrap(data, 1, 4).getInt());
    BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(data, 5, data.length - 5, null);
    String text = model.toString(reader.read(null, decoder));
    if (!decoder.isEnd()) {
      throw new IllegalStateException("bytes after " + text);
    }
    return text;
  }

  private GenericDatumReader<Object> reader(int id) throws IOException, InterruptedException {
    GenericDatumReader<Object> reader = readers.get(id);
    if (reader == null) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(registry + "/schemas/ids/" + id)).build();
      String answer = http.send(request, HttpResponse.BodyHandlers.ofString()).body();
      Schema schema = new Schema.Parser().parse(new ObjectMapper().readTree(answer).get("schema").asText());
      reader = new GenericDatumReader<>(schema, schema, model);
      readers.put(id, reader);
    }
    return reader;
  }
}
