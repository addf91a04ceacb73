package keyringtest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

const personSchema = `{"type":"record","name":"Person","fields":[
	{"name":"id","type":"string"},
	{"name":"type","type":"string","default":"Person"},
	{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}},
	{"name":"data","type":{"type":"record","name":"PersonData","fields":[
		{"name":"id","type":["null","string"]},
		{"name":"email","type":"string","millrace.pii":true},
		{"name":"mail","type":"string","millrace.pii":"email"},
		{"name":"photo","type":["null","bytes"],"default":null,"millrace.pii":true},
		{"name":"city","type":"string","default":"Ulm"}]}}]}`

// People returns a topology that encrypts the tagged fields of its only type,
// Person, on the topic people.events.
func People(t testing.TB, partitions int) *topology.Topology {
	t.Helper()
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, `name: people
topics:
  people.events: {partitions: %d, types: [Person]}
encryption: {key_topic: people.keys, subject: {Person: data.id}}
`, partitions)}, topology.Options{Schemas: fstest.MapFS{"Person.avsc": &fstest.MapFile{Data: []byte(personSchema)}}})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// Fields returns the schema of a person and its encrypted fields.
func Fields(t testing.TB) (*codec.Schema, *keyring.Fields) {
	t.Helper()
	plan := People(t, 1)
	s := plan.Topics[0].Types[0]
	f, err := keyring.NewFields(plan.Encryption, s)
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

// SchemaID is the schema id of the events of [Encoder].
const SchemaID = 7

// Encoder returns an encoder of people with encrypted fields. If keys is nil, it
// does not encrypt.
func Encoder(t testing.TB, keys *keyring.Ring) *event.Encoder {
	t.Helper()
	plan := People(t, 1)
	e, err := event.NewEncoder(event.EncoderConfig{
		Topic: plan.Topics[0], Key: "id", Encryption: plan.Encryption,
		NewID: func() string { return harness.ID }, Now: func() time.Time { return harness.Now },
	})
	if err == nil {
		err = e.Register(t.Context(), eventtest.NewIDs(SchemaID), false)
	}
	if err != nil {
		t.Fatal(err)
	}
	e.UseKeys(keys)
	return e
}

// Person returns the line of an event without envelope. id is JSON: a string or
// null.
func Person(id, email string) string {
	return fmt.Sprintf(`{"data":{"id":%s,"email":%q,"mail":""}}`+"\n", id, email)
}

// KEKs returns one key-encryption key for each id.
func KEKs(t testing.TB, ids ...string) *seal.KEKs {
	t.Helper()
	text := ""
	for _, id := range ids {
		text += id + " " + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(id), 32)[:32]) + "\n"
	}
	k, err := seal.ParseKEKs(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Keys returns a ring in which each of the subjects has a key.
func Keys(t testing.TB, k *seal.KEKs, subjects ...string) *seal.Ring {
	t.Helper()
	r := seal.NewRing(k)
	for _, s := range subjects {
		record, err := k.NewKey(s, harness.Now)
		if err == nil {
			err = r.Apply(record)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// Body returns the Avro body of a person whose data is JSON.
func Body(t testing.TB, s *codec.Schema, data string) []byte {
	t.Helper()
	var j codec.JSON
	if err := j.Parse([]byte(`{"id":"e-1","timestamp":1,"data":` + data + `}`)); err != nil {
		t.Fatal(err)
	}
	body, err := j.AppendAvro(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// Seal encrypts a body with the current key of its subject.
func Seal(t testing.TB, f *keyring.Fields, ring *seal.Ring, body []byte) []byte {
	t.Helper()
	var v pipeline.View
	if err := f.Walk(body, &v); err != nil {
		t.Fatal(err)
	}
	subject, err := f.Subject(&v)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ring.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	f.Seal(&v, subject, key)
	return v.Append(nil)
}

// JSON returns the data of a person as [keyring.Fields.Open] shows it, and the
// reasons for its hidden fields by path.
func JSON(t testing.TB, f *keyring.Fields, ring *seal.Ring, body []byte) (string, map[string]string) {
	t.Helper()
	shown, err := f.Open(body, ring)
	if err != nil {
		t.Fatal(err)
	}
	text, err := codec.AppendJSON(nil, shown.Type, shown.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, data, _ := strings.Cut(string(text), `"data":`)
	return strings.TrimSuffix(data, "}"), shown.Hidden
}
