package event_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The golden file fixes the wire format: the records of a few events, byte for byte.
func TestRecordsByteForByte(t *testing.T) {
	const golden = "testdata/records.golden"
	lines := []string{
		`{"id":"ec146181-bb13-5def-bc5f-2c4e04918be0","type":"UserCreated","timestamp":"1997-01-01T00:00:00.000Z","version":1,"metadata":{"source":"cdnow"},"data":{"id":"u-00001","email":"a@example.com","name":"Zoë"}}`,
		`{"data":{"id":"o-1"},"type":"order_paid"}`,
		`{"type":"shop.OrderShipped","metadata":{"b":"2","a":"1"},"data":{"id":"ключ"},"timestamp":"2026-01-02T03:04:05.678901999+02:00","id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","version":7}`,
		`{"type":"UserUpdated","timestamp":1000000,"data":{"id":"u\u002d1","name":null}}`,
		`{"type":"OrderCreated","data":{"id":"o","user_id":"u","items":[{"product_id":"\u00e9\n","quantity":3.0,"price":1e-3}],"total_amount":0.003}}`,
	}
	e := eventtest.ShopEncoder(t)
	var got bytes.Buffer
	for _, line := range lines {
		var r pipeline.Record
		typ, _, err := e.Encode([]byte(line), &r, nil)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		fmt.Fprintf(&got, "%s\n  %s to %s, partition %d, at %s, %d headers\n  key   %q\n%s\n", line, typ.Name, r.Topic, r.Partition, r.Time.UTC().Format(time.RFC3339Nano), len(r.Headers), r.Key, hex.Dump(r.Value))
	}
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got\n%s\nwant\n%s", got.Bytes(), want)
	}
}

func TestErrorNamesTheFieldOfABadLine(t *testing.T) {
	const paid = `{"type":"OrderPaid","data":{"id":"o"}`
	order := func(rest string) string {
		return `{"type":"OrderCreated","data":{"id":"o","user_id":"u","total_amount":1,"items":[` + rest + `]}}`
	}
	for _, test := range []struct{ line, typ, want string }{
		{`{"type":"OrderPaid"`, "", `the JSON ends too early`},
		{`{"type":"OrderPaid",}`, "", `column 21: invalid character '}' looking for beginning of object key string`},
		{paid + `} {}`, "", `column 40: more text after the end of the JSON`},
		{`[]`, "", `expected an event, a JSON object`},
		{`null`, "", `expected an event, a JSON object`},
		{"{\"type\":\"OrderPaid\",\"data\":{\"id\":\"\xff\"}}", "", `column 35: not UTF-8: byte 0xff`},
		{"{\"type\":\"Order\x00Paid\"}", "", `column 15: invalid character '\x00' in string literal`},
		{`{"data":{"id":"o"}}`, "", `type: missing; shop.events takes OrderCreated, OrderPaid, OrderShipped, UserCreated, UserDeleted, UserUpdated`},
		{`{"type":"OrderPayed","data":{}}`, "", `type: unknown event type "OrderPayed"; shop.events takes`},
		{`{"type":7,"data":{}}`, "", `type: expected a string; shop.events takes`},
		{paid + `,"version":2147483648}`, "OrderPaid", `version: expected int (-2147483648 to 2147483647), found number 2147483648`},
		{paid + `,"id":"7"}`, "OrderPaid", `id: expected string (uuid), found string "7"`},
		{paid + `,"timestamp":"yesterday"}`, "OrderPaid", `timestamp: expected long (timestamp-micros), found string "yesterday"`},
		{paid + `,"timestamp":"2600-12-31T00:00:00Z"}`, "OrderPaid", `timestamp: 2600-12-31T00:00:00Z is after 2262-04-11T23:47:16.854Z, the last time that a Kafka record can have`},
		{paid + `,"timestamp":9223372036854775807}`, "OrderPaid", `timestamp: the time 9223372036854775807 (in microseconds since 1970) is after 2262-04-11T23:47:16.854Z, the last time that a Kafka record can have`},
		{paid + `,"timestamp":"1969-12-31T23:59:59.999Z"}`, "OrderPaid", `timestamp: 1969-12-31T23:59:59.999Z is before 1970, which a Kafka record's time cannot be`},
		{paid + `,"metadata":{"a":1}}`, "OrderPaid", `metadata.a: expected string, found number 1`},
		{paid + `,"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","id":"ec146181-bb13-5def-bc5f-2c4e04918be0"}`, "OrderPaid", `id: duplicate key`},
		{`{"type":"OrderPaid","data":{}}`, "OrderPaid", `data.id: missing; expected string`},
		{`{"type":"OrderPaid","data":{"id":""}}`, "OrderPaid", `data.id: expected the record key, found an empty text`},
		{order(`{"product_id":"p","quantity":1.5,"price":1}`), "OrderCreated", `data.items[0].quantity: expected int, found number 1.5`},
		{order(`{"product_id":"p","quantty":1,"price":1}`), "OrderCreated", `data.items[0].quantty: unknown field; did you mean "quantity"?`},
		{`{"type":"OrderPaid","data":{"id":"` + strings.Repeat("x", kafka.Limits(nil).MaxRecord("")) + `"}}`, "OrderPaid", `too large: `},
	} {
		t.Run(test.want, func(t *testing.T) {
			var r pipeline.Record
			typ, _, err := eventtest.ShopEncoder(t).Encode([]byte(test.line), &r, nil)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("%.100s\ngot  %v\nwant %s", test.line, err, test.want)
			}
			if (typ == nil) != (test.typ == "") || typ != nil && typ.Name != test.typ {
				t.Errorf("got type %+v, want %q", typ, test.typ)
			}
		})
	}
}

// Schemas of other teams: no envelope, another key, types with one short name.
func TestEncoderOfOtherSchemas(t *testing.T) {
	encoder := func(key string, list ...string) (*event.Encoder, error) {
		topic := &topology.Topic{Name: "t"}
		for _, text := range list {
			topic.Types = append(topic.Types, eventtest.Schema(t, text))
		}
		return eventtest.Encoder(t, topic, key)
	}
	encode := func(t *testing.T, e *event.Encoder, line string) (string, time.Time, string) {
		t.Helper()
		var r pipeline.Record
		typ, _, err := e.Encode([]byte(line), &r, nil)
		if err != nil {
			return "", time.Time{}, err.Error()
		}
		return typ.Schema.Name() + " " + string(r.Key), r.Time, ""
	}
	t.Run("one type without envelope", func(t *testing.T) {
		e, err := encoder("n", `{"type":"record","name":"Plain","fields":[{"name":"n","type":"long"},{"name":"timestamp","type":"string","default":""}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if got, at, fault := encode(t, e, `{"n":-42}`); got != "Plain -42" || !at.Equal(harness.Now) || fault != "" {
			t.Errorf("%q at %v, %s", got, at, fault)
		}
		if _, _, fault := encode(t, e, `{"n":1,"type":"Plain"}`); !strings.HasPrefix(fault, "type: unknown field") {
			t.Errorf("type is not a field of the schema: %s", fault)
		}
	})
	t.Run("a key that may be null", func(t *testing.T) {
		e, err := encoder("k", `{"type":"record","name":"R","fields":[{"name":"k","type":["null","string"],"default":null},{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if got, at, fault := encode(t, e, `{"k":"x","timestamp":"2026-01-01T00:00:00.123456Z"}`); got != "R x" || at.UnixNano() != 1767225600123e6 || fault != "" {
			t.Errorf("%q at %v, %s", got, at, fault)
		}
		if _, _, fault := encode(t, e, `{}`); fault != "k: expected the record key, found null" {
			t.Error(fault)
		}
	})
	t.Run("two types with one short name", func(t *testing.T) {
		const record = `{"type":"record","name":"%s.E","fields":[{"name":"id","type":"string"},{"name":"type","type":"string"}]}`
		e, err := encoder("id", fmt.Sprintf(record, "a"), fmt.Sprintf(record, "b"))
		if err != nil {
			t.Fatal(err)
		}
		if got, _, fault := encode(t, e, `{"type":"b.E","id":"1"}`); got != "b.E 1" {
			t.Errorf("%q, %s", got, fault)
		}
		if _, _, fault := encode(t, e, `{"type":"E","id":"1"}`); fault != `type: unknown event type "E"; t takes a.E, b.E` {
			t.Error(fault)
		}
	})
	t.Run("fields that cannot be the key", func(t *testing.T) {
		const record = `{"type":"record","name":"R","fields":[{"name":"d","type":"double"},{"name":"o","type":{"type":"record","name":"O","fields":[]}}]}`
		for key, want := range map[string]string{
			"d":    "--key d: R: a record key is a string, an int or a long; this is double",
			"o":    "--key o: R: o of R is a record: name one of its fields",
			"x":    "--key x: R: ",
			"o.id": "--key o.id: R: ",
		} {
			if _, err := encoder(key, record); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s: %v", key, err)
			}
		}
	})
}

// A key within a nullable record is the key of the records that have it. An event without it
// has no key, and is rejected with the path and the reason.
func TestKeysWithinNullableRecords(t *testing.T) {
	s := eventtest.Schema(t, `{"type":"record","name":"R","fields":[{"name":"n","type":"int"},{"name":"after","type":["null",{"type":"record","name":"Row","fields":[
		{"name":"n","type":"int"},{"name":"who","type":[{"type":"record","name":"Who","fields":[{"name":"tenant","type":["null","string"]},{"name":"id","type":["null","long"]}]},"null"]}]}]}]}`)
	whole := eventtest.Schema(t, `{"type":"record","name":"WhoKey","fields":[{"name":"tenant","type":["null","string"]},{"name":"id","type":["null","long"]}]}`)
	for _, test := range []struct {
		key    string
		format keyformat.Format
		line   string
		want   string
	}{
		{"after.who.id", keyformat.Format{}, `{"n":1,"after":{"n":2,"who":{"tenant":"a","id":7}}}`, "7"},
		{"after.who.id", keyformat.Format{}, `{"n":1,"after":{"n":2,"who":{"tenant":"a","id":null}}}`, "after.who.id: expected the record key, found null"},
		{"after.who.id", keyformat.Format{}, `{"n":1,"after":{"n":2,"who":null}}`, "after.who.id: expected the record key, but after or after.who is null"},
		{"after.n", keyformat.Format{}, `{"n":1,"after":null}`, "after.n: expected the record key, but after is null"},
		{"after.n", keyformat.Format{Kind: keyformat.Int}, `{"n":1,"after":{"n":2,"who":null}}`, "\x00\x00\x00\x02"},
		{"after.who", keyformat.Format{Kind: keyformat.Avro, Schema: whole}, `{"n":1,"after":{"n":2,"who":{"tenant":"a","id":7}}}`, "\x00\x00\x00\x00\x02\x02\x02a\x02\x0e"},
		{"after.who.id", keyformat.Format{Kind: keyformat.Avro, Schema: whole}, `{"n":1,"after":null}`, "\x00\x00\x00\x00\x02\x00\x00"},
	} {
		e, err := eventtest.Encoder(t, &topology.Topic{Name: "t", Types: []*codec.Schema{s}, Bare: &expr.Bare{}, KeyFormat: test.format}, test.key)
		if err != nil {
			t.Errorf("%s: %v", test.key, err)
			continue
		}
		var r pipeline.Record
		_, _, err = e.Encode([]byte(test.line), &r, nil)
		got := string(r.Key)
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s of %s: %q, want %q", test.key, test.line, got, test.want)
		}
	}
	for key, want := range map[string]string{
		"after.who":     "--key after.who: R: after.who of R is a record: name one of its fields",
		"after.whom.id": "--key after.whom.id: R: R has no field after.whom",
	} {
		if _, err := eventtest.Encoder(t, &topology.Topic{Name: "t", Types: []*codec.Schema{s}, Bare: &expr.Bare{}}, key); err == nil || err.Error() != want {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// FuzzLine: the encoder never panics, and a record that it returns decodes as the
// event.
func FuzzLine(f *testing.F) {
	f.Add(`{"id":"ec146181-bb13-5def-bc5f-2c4e04918be0","type":"UserCreated","timestamp":"1997-01-01T00:00:00.000Z","version":1,"metadata":{"source":"x"},"data":{"id":"u","email":"e","name":"n"}}`)
	f.Add(`{"type":"order_created","data":{"id":"o","user_id":"u","items":[{"product_id":"\u00e9","quantity":3.0,"price":"NaN"}],"total_amount":-0}}`)
	f.Add(`{"type":"UserUpdated","data":{"id":"u","email":{"string":"x"},"name":null},"timestamp":1}`)
	e := eventtest.ShopEncoder(f)
	f.Fuzz(func(t *testing.T, line string) {
		var r pipeline.Record
		typ, _, err := e.Encode([]byte(line), &r, nil)
		if err != nil {
			return
		}
		ref, body, err := codec.Unframe(&r)
		if err != nil || ref.ID != typ.ID {
			t.Fatalf("%q: frame of schema %v, %v", line, ref, err)
		}
		text, err := codec.AppendJSON(nil, typ.Schema.Root(), body)
		if err != nil {
			t.Fatalf("%q gives %x: %v", line, body, err)
		}
		var again pipeline.Record
		if _, _, err := e.Encode(text, &again, nil); err != nil || !bytes.Equal(again.Value, r.Value) || !bytes.Equal(again.Key, r.Key) || !again.Time.Equal(r.Time) {
			t.Fatalf("%q\nreads back as %s\nwhich gives %x, %v\nwant %x", line, text, again.Value, err, r.Value)
		}
	})
}

func BenchmarkEncodeLine(b *testing.B) {
	e := eventtest.ShopEncoder(b)
	line := []byte(`{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderCreated","timestamp":"1997-01-01T00:00:00.050Z","version":1,"metadata":{"source":"cdnow"},"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd","quantity":1,"price":11.77}],"total_amount":11.77}}`)
	b.ReportAllocs()
	var r pipeline.Record
	var buf []byte
	for b.Loop() {
		var err error
		if _, buf, err = e.Encode(line, &r, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// An event names its type by the record's name, with or without namespace, or in snake
// case. The name of one type never hides that of another.
func TestEventsNameTheirTypes(t *testing.T) {
	record := func(name string) *codec.Schema {
		return eventtest.Schema(t, `{"type":"record","name":"`+name+`","fields":[{"name":"id","type":"string"},{"name":"type","type":"string"}]}`)
	}
	encoder, err := eventtest.Encoder(t, &topology.Topic{Name: "t", Types: []*codec.Schema{
		record("orders"), record("HTTPRequest"), record("a.user_created"), record("a.UserCreated"), record("a.Twin"), record("b.Twin"),
	}}, "id")
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{
		"orders": "orders", "HTTPRequest": "HTTPRequest", "http_request": "HTTPRequest", "h_t_t_p_request": "HTTPRequest",
		"user_created": "a.user_created", "a.user_created": "a.user_created", "UserCreated": "a.UserCreated", "a.UserCreated": "a.UserCreated",
		"a.Twin": "a.Twin", "b.Twin": "b.Twin", "Twin": "", "twin": "", "Orders": "",
	} {
		var r pipeline.Record
		typ, _, err := encoder.Encode([]byte(`{"id":"x","type":"`+given+`"}`), &r, nil)
		switch {
		case want == "" && (err == nil || !strings.Contains(err.Error(), "unknown event type")):
			t.Errorf("%s: got %v", given, err)
		case want == "":
		case err != nil || typ.Schema.Name() != want:
			t.Errorf("%s: %v, want %s", given, err, want)
		case !strings.HasSuffix(string(r.Value), "\x02x"+string(codec.AppendString(nil, typ.Name))):
			t.Errorf("%s: written as %q", given, r.Value)
		}
	}
}

// Without an envelope, and if it is no text, the field type is data like any other.
func TestFieldTypeIsData(t *testing.T) {
	for _, test := range []struct {
		typ  string
		bare *expr.Bare
	}{{`"string"`, &expr.Bare{}}, {`{"type":"enum","name":"E","symbols":["debit","credit"]}`, nil}} {
		s := eventtest.Schema(t, `{"type":"record","name":"Booking","fields":[{"name":"id","type":"string"},{"name":"type","type":`+test.typ+`}]}`)
		encoder, err := eventtest.Encoder(t, &topology.Topic{Name: "t", Types: []*codec.Schema{s}, Bare: test.bare}, "id")
		if err != nil {
			t.Fatal(err)
		}
		var r pipeline.Record
		if _, _, err := encoder.Encode([]byte(`{"id":"x","type":"credit"}`), &r, nil); err != nil {
			t.Errorf("%s: %v", test.typ, err)
			continue
		}
		text, err := codec.AppendJSON(nil, s.Root(), r.Value[codec.FrameSize:])
		if err != nil || string(text) != `{"id":"x","type":"credit"}` {
			t.Errorf("%s: written as %s, %v", test.typ, text, err)
		}
	}
}
