package event_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

const someUUID = "123e4567-e89b-12d3-a456-42661417400a"

// keyTopic returns a topic whose events have the id of a type in the field data.id, next
// to other fields.
func keyTopic(t testing.TB, format keyformat.Format, typ string) *topology.Topic {
	t.Helper()
	return &topology.Topic{Name: "things", KeyFormat: format, Types: []*codec.Schema{eventtest.Schema(t, fmt.Sprintf(`
		{"type": "record", "name": "Thing", "fields": [
			{"name": "id", "type": "string"}, {"name": "type", "type": "string"}, {"name": "tenant", "type": "int"},
			{"name": "data", "type": {"type": "record", "name": "Data", "fields": [
				{"name": "id", "type": %s},
				{"name": "region", "type": ["null", "string"]},
				{"name": "place", "type": {"type": "record", "name": "Where", "fields": [{"name": "x", "type": "int"}]}}]}}]}`, typ))}}
}

func thing(id string) []byte {
	return fmt.Appendf(nil, `{"id": "e", "type": "Thing", "tenant": 3, "data": {"id": %s, "region": "eu", "place": {"x": 1}}}`, id)
}

// avroKey returns a key as another client writes it. The encoder gives the second schema
// that it registers the id 2.
func avroKey(t *testing.T, schema string, v any) []byte {
	t.Helper()
	s, err := avro.Parse(schema)
	if err != nil {
		t.Fatal(err)
	}
	head, err := new(sr.ConfluentHeader).AppendEncode(nil, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := s.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

const (
	fixedUUID = `{"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}`
	textUUID  = `{"type": "string", "logicalType": "uuid"}`
	fixed2    = `{"type": "fixed", "name": "F", "size": 2}`
	enumKey   = `{"type": "enum", "name": "E", "symbols": ["A", "B"]}`
	oneKey    = `{"type": "record", "name": "One", "fields": [{"name": "number", "type": "long"}]}`
	threeKey  = `{"type": "record", "name": "Three", "fields": [{"name": "tenant", "type": "long"}, {"name": "region", "type": ["null", "string"]}, {"name": "id", "type": "string"}]}`
	nestedKey = `{"type": "record", "name": "Nested", "fields": [{"name": "place", "type": {"type": "record", "name": "P", "fields": [{"name": "x", "type": "long"}]}}]}`
)

// The record key has the format of the topic, whatever the type of the event's field is.
func TestTheKeyHasTheFormatOfTheTopic(t *testing.T) {
	u := uuid.MustParse(someUUID)
	for _, test := range []struct {
		format keyformat.Kind
		schema string // of Avro keys
		typ    string // of the field
		value  string
		want   []byte
	}{
		{"", "", `"string"`, `"ü"`, []byte("ü")},
		{keyformat.Text, "", `"int"`, `-7`, []byte("-7")},
		{keyformat.Text, "", `["null", "long"]`, `7`, []byte("7")},
		{keyformat.Long, "", `"long"`, `-2`, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe}},
		{keyformat.Long, "", `"int"`, `258`, []byte{0, 0, 0, 0, 0, 0, 1, 2}},
		{keyformat.Long, "", `["null", "string"]`, `"258"`, []byte{0, 0, 0, 0, 0, 0, 1, 2}},
		{keyformat.Int, "", `"int"`, `-1`, []byte{0xff, 0xff, 0xff, 0xff}},
		{keyformat.Int, "", `"long"`, `258`, []byte{0, 0, 1, 2}},
		{keyformat.Int, "", `"string"`, `"-2147483648"`, []byte{0x80, 0, 0, 0}},
		{keyformat.UUID, "", `"string"`, strconv.Quote(someUUID), u[:]},
		{keyformat.UUID, "", textUUID, strconv.Quote(someUUID), u[:]},
		{keyformat.UUID, "", fixedUUID, strconv.Quote(someUUID), u[:]},
		{keyformat.UUID, "", `"bytes"`, `"AAECAwQFBgcICQoLDA0ODw=="`, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
		{keyformat.Bytes, "", `"string"`, `"00FF"`, []byte{0, 0xff}},
		{keyformat.Bytes, "", `"bytes"`, `"AP8="`, []byte{0, 0xff}},
		{keyformat.Bytes, "", `["null", ` + fixed2 + `]`, `"AP8="`, []byte{0, 0xff}},
		{keyformat.Avro, `"string"`, `"string"`, `"a"`, avroKey(t, `"string"`, "a")},
		{keyformat.Avro, `"string"`, `"long"`, `-5`, avroKey(t, `"string"`, "-5")},
		{keyformat.Avro, `"long"`, `"string"`, `"300"`, avroKey(t, `"long"`, int64(300))},
		{keyformat.Avro, `"int"`, `"long"`, `300`, avroKey(t, `"int"`, int32(300))},
		{keyformat.Avro, `"string"`, fixedUUID, strconv.Quote(someUUID), avroKey(t, `"string"`, someUUID)},
		{keyformat.Avro, fixedUUID, `"string"`, strconv.Quote(someUUID), avroKey(t, fixed16, u[:])},
		{keyformat.Avro, fixed2, `"bytes"`, `"AP8="`, avroKey(t, fixed2, []byte{0, 0xff})},
		{keyformat.Avro, enumKey, `"string"`, `"B"`, avroKey(t, enumKey, "B")},
		{keyformat.Avro, `"boolean"`, `"boolean"`, `true`, avroKey(t, `"boolean"`, true)},
		{keyformat.Avro, oneKey, `"long"`, `7`, avroKey(t, oneKey, map[string]any{"number": int64(7)})},
		{keyformat.Avro, oneKey, `"string"`, `"7"`, avroKey(t, oneKey, map[string]any{"number": int64(7)})},
		{keyformat.Avro, threeKey, `"long"`, `7`, avroKey(t, threeKey, map[string]any{"tenant": int64(3), "region": "eu", "id": "7"})},
		{keyformat.Avro, nestedKey, `"long"`, `7`, avroKey(t, nestedKey, map[string]any{"place": map[string]any{"x": int64(1)}})},
	} {
		format := keyformat.Format{Kind: test.format}
		if test.schema != "" {
			format.Schema = eventtest.Schema(t, test.schema)
		}
		e, err := eventtest.Encoder(t, keyTopic(t, format, test.typ), "data.id")
		if err != nil {
			t.Errorf("%s %s of %s: %v", test.format, test.schema, test.typ, err)
			continue
		}
		var r pipeline.Record
		if _, _, err := e.Encode(thing(test.value), &r, nil); err != nil || !bytes.Equal(r.Key, test.want) || r.Partition != pipeline.KeyPartition {
			t.Errorf("%s %s of %s %s is %x, %v; want %x", test.format, test.schema, test.typ, test.value, r.Key, err, test.want)
		}
	}
}

// fixed16 is the schema of a UUID without its logical type, for clients that have none.
const fixed16 = `{"type": "fixed", "name": "U", "size": 16}`

func TestAFieldThatIsNoKeyOfTheFormatIsABadEvent(t *testing.T) {
	for _, test := range []struct {
		format      keyformat.Kind
		schema      string
		typ, value  string
		field, want string
	}{
		{"", "", `"string"`, `"\u0000a"`, "data.id", `"\x00a" begins with a zero byte, and a key of things is text: send another id, or set key_format on the topic`},
		{"", "", `["null", "string"]`, `null`, "data.id", "expected the record key, found null"},
		{keyformat.Long, "", `"string"`, `"u-1"`, "data.id", `"u-1" is not a key of things, which has key_format long: send a whole number of 64 bits`},
		{keyformat.Long, "", `"string"`, `"007"`, "data.id", `"007" is not a key of things, which has key_format long: send a whole number of 64 bits`},
		{keyformat.Long, "", `"string"`, `""`, "data.id", "expected the record key, found an empty text"},
		{keyformat.Int, "", `"long"`, `2147483648`, "data.id", "2147483648 is not a key of things, which has key_format int: send a whole number of 32 bits"},
		{keyformat.UUID, "", `"string"`, `"u-1"`, "data.id", `"u-1" is not a key of things, which has key_format uuid: send a UUID such as 123e4567-e89b-12d3-a456-426614174000, or its 16 bytes`},
		{keyformat.UUID, "", `"bytes"`, `"AP8="`, "data.id", "2 bytes are not a key of things, which has key_format uuid: send a UUID such as 123e4567-e89b-12d3-a456-426614174000, or its 16 bytes"},
		{keyformat.Bytes, "", `"string"`, `"0g"`, "data.id", `"0g" is not a key of things, which has key_format bytes: send hexadecimal text such as 00ff, or bytes that are not empty`},
		{keyformat.Bytes, "", `"bytes"`, `""`, "data.id", "0 bytes are not a key of things, which has key_format bytes: send hexadecimal text such as 00ff, or bytes that are not empty"},
		{keyformat.Avro, oneKey, `"string"`, `"x"`, "data.id", `"x" cannot become long, as the key_schema of things (One) has it`},
		{keyformat.Avro, `"int"`, `"long"`, `2147483648`, "data.id", "2147483648 does not fit an int, as the key_schema of things (int) has it"},
		{keyformat.Avro, textUUID, `"string"`, `"x"`, "data.id", `"x" cannot become string (uuid), as the key_schema of things (string (uuid)) has it`},
		{keyformat.Avro, fixed2, `"bytes"`, `"AA=="`, "data.id", `1 bytes cannot become F, as the key_schema of things (F) has it`},
		{keyformat.Avro, enumKey, `"string"`, `"C"`, "data.id", `"C" cannot become E, as the key_schema of things (E) has it`},
		{keyformat.Avro, `["null", "long"]`, `["null", "long"]`, `null`, "data.id", "expected the record key, found null"},
	} {
		format := keyformat.Format{Kind: test.format}
		if test.schema != "" {
			format.Schema = eventtest.Schema(t, test.schema)
		}
		e, err := eventtest.Encoder(t, keyTopic(t, format, test.typ), "data.id")
		if err != nil {
			t.Errorf("%s %s of %s: %v", test.format, test.schema, test.typ, err)
			continue
		}
		var r pipeline.Record
		if _, _, err := e.Encode(thing(test.value), &r, nil); err == nil || err.Error() != test.field+": "+test.want {
			t.Errorf("%s %s of %s %s: %v\nwant %s: %s", test.format, test.schema, test.typ, test.value, err, test.field, test.want)
		}
	}
}

// A key that no event can have is a fault at the start.
func TestAKeyPathThatNeverFitsIsAFault(t *testing.T) {
	for _, test := range []struct {
		format    keyformat.Kind
		schema    string
		typ, path string
		want      string
	}{
		{"", "", `"boolean"`, "data.id", "Thing: a record key is a string, an int or a long; this is boolean"},
		{keyformat.Long, "", `"bytes"`, "data.id", "Thing: a record key on things, which has key_format long, is a string, an int or a long; this is bytes"},
		{keyformat.UUID, "", `"long"`, "data.id", "Thing: a record key on things, which has key_format uuid, is a string, bytes, or a fixed of 16 bytes; this is long"},
		{keyformat.UUID, "", fixed2, "data.id", "is a string, bytes, or a fixed of 16 bytes; this is F"},
		{keyformat.Bytes, "", `"long"`, "data.id", "is bytes, a fixed, or a string in hexadecimal; this is long"},
		{keyformat.Long, "", `"long"`, "data.no", "Thing has no field data.no"},
		{keyformat.Long, "", `"long"`, "data.place", "data.place of Thing is a record: name one of its fields"},
		{keyformat.Avro, "", `"long"`, "data.id", "things has Avro keys without a schema: set key_schema on the topic"},
		{keyformat.Avro, oneKey, `"boolean"`, "data.id", "data.id is boolean, which cannot become long as the key_schema of things (One) has it"},
		{keyformat.Avro, threeKey, `"long"`, "data.place", "the event has no field tenant, which is a field of Three, the key_schema of things: add it to the event, or name the record with the key's fields"},
		{keyformat.Avro, `{"type": "long", "logicalType": "timestamp-millis"}`, `"long"`, "data.id", "cannot become long"},
	} {
		format := keyformat.Format{Kind: test.format}
		if test.schema != "" {
			format.Schema = eventtest.Schema(t, test.schema)
		}
		_, err := eventtest.Encoder(t, keyTopic(t, format, test.typ), test.path)
		if err == nil || !strings.HasPrefix(err.Error(), "--key "+test.path+": ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s of %s: %v, want %s", test.format, test.schema, test.typ, err, test.want)
		}
	}
}

// The bytes of a long are those of a big-endian writer, so other clients can read them.
func TestALongKeyIsBigEndian(t *testing.T) {
	e, err := eventtest.Encoder(t, keyTopic(t, keyformat.Format{Kind: keyformat.Long}, `"long"`), "data.id")
	if err != nil {
		t.Fatal(err)
	}
	var r pipeline.Record
	if _, _, err := e.Encode(thing("-9223372036854775808"), &r, nil); err != nil || binary.BigEndian.Uint64(r.Key) != 1<<63 {
		t.Errorf("%x, %v", r.Key, err)
	}
}
