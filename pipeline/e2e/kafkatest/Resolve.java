import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.io.EncoderFactory;

// Resolve reads values with a reader's schema. Each three lines of the input are the writer's
// schema, the reader's schema and the value in hex. The answer is one line: the value with
// the reader's schema in hex, or "error" and the reason.
public final class Resolve {
    public static void main(String[] args) throws Exception {
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String writer; (writer = in.readLine()) != null; ) {
            String reader = in.readLine();
            String value = in.readLine();
            try {
                out.println("ok " + HexFormat.of().formatHex(resolve(writer, reader, HexFormat.of().parseHex(value))));
            } catch (Exception e) {
                out.println("error " + e.toString().replaceAll("\\s+", " "));
            }
        }
        out.flush();
    }

    private static byte[] resolve(String writer, String reader, byte[] value) throws Exception {
        Schema to = new Schema.Parser().parse(reader);
        BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(value, null);
        Object datum = new GenericDatumReader<Object>(new Schema.Parser().parse(writer), to).read(null, decoder);
        if (!decoder.isEnd()) {
            throw new IllegalArgumentException("bytes are left");
        }
        var bytes = new ByteArrayOutputStream();
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(bytes, null);
        new GenericDatumWriter<Object>(to).write(datum, encoder);
        encoder.flush();
        return bytes.toByteArray();
    }
}
