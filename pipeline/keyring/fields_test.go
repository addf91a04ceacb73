package keyring_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

func TestTaggedFieldsAreSealedAndShown(t *testing.T) {
	s, f := keyringtest.Fields(t)
	ring := keyringtest.Keys(t, keyringtest.KEKs(t, "a"), "u-1", "u-2")
	for _, data := range []string{
		`{"id":"u-1","email":"anna@example.com","mail":"","photo":"/////w==","city":"Bonn"}`,
		`{"id":"u-1","email":"sealed:","mail":"ünï","photo":null,"city":"Bonn"}`,
	} {
		body := keyringtest.Body(t, s, data)
		sealed := keyringtest.Seal(t, f, ring, body)
		if bytes.Contains(sealed, []byte("anna")) || bytes.Contains(sealed, []byte("\xff\xff\xff\xff")) || !bytes.Contains(sealed, []byte("Bonn")) {
			t.Errorf("%q", sealed)
		}
		if _, err := codec.AppendJSON(nil, s.Root(), sealed); err != nil {
			t.Errorf("the sealed body is not a valid %s: %v", s.Name(), err)
		}
		if got, hidden := keyringtest.JSON(t, f, ring, sealed); got != data || len(hidden) > 0 {
			t.Errorf("shown as %s, %v\nwant     %s", got, hidden, data)
		}
	}
	// A content that was written before the field was tagged is shown as it is, and marked.
	data := `{"id":null,"email":"anna@example.com","mail":"","photo":null,"city":"Ulm"}`
	if got, hidden := keyringtest.JSON(t, f, ring, keyringtest.Body(t, s, data)); got != data || len(hidden) > 0 {
		t.Errorf("plaintext is shown as %s, %v", got, hidden)
	}
	for data, want := range map[string]string{
		`{"id":"u-1","email":"anna@example.com","mail":"","photo":null,"city":"Ulm"}`: "[data.email]",
		`{"id":"u-1","email":"","mail":"sealedx","photo":"/////w==","city":"Ulm"}`:    "[data.mail data.photo]",
	} {
		body := keyringtest.Body(t, s, data)
		shown, err := f.Open(body, ring)
		if err != nil || fmt.Sprint(shown.Plain) != want {
			t.Errorf("%s: %v are plain, want %s; %v", data, shown.Plain, want, err)
		}
		if shown, err = f.Open(keyringtest.Seal(t, f, ring, body), ring); err != nil || len(shown.Plain) > 0 {
			t.Errorf("%s: %v are plain after encrypting: %v", data, shown.Plain, err)
		}
	}
}

// hiddenRings returns rings that miss something of the subject u-1, by name, and a
// ciphertext of its field email under the key that "locked" cannot unwrap.
func hiddenRings(t *testing.T, k *seal.KEKs, complete *seal.Ring) (rings map[string]*seal.Ring, locked string) {
	t.Helper()
	mark, err := seal.NewErasure("u-1", harness.Now)
	if err != nil {
		t.Fatal(err)
	}
	record, err := k.NewKey("u-1", harness.Now)
	if err != nil {
		t.Fatal(err)
	}
	unlocked := seal.NewRing(k)
	rings = map[string]*seal.Ring{
		"":        complete,
		"erased":  keyringtest.Keys(t, k, "u-1"),
		"another": seal.NewRing(k),
		"locked":  seal.NewRing(nil),
		"empty":   seal.NewRing(k),
	}
	for _, err := range []error{rings["erased"].Apply(mark), rings["another"].Apply(record), rings["locked"].Apply(record), unlocked.Apply(record)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return rings, sealText(t, unlocked, "u-1", "email", "anna")
}

func sealText(t *testing.T, ring *seal.Ring, subject, field, plain string) string {
	t.Helper()
	key, err := ring.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	return string(key.AppendText(nil, []byte(plain), seal.Place{Subject: subject, Field: field}))
}

// sealBytes returns a ciphertext of bytes in base64.
func sealBytes(t *testing.T, ring *seal.Ring, subject, field string) string {
	t.Helper()
	key, err := ring.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(key.AppendBytes(nil, []byte("x"), seal.Place{Subject: subject, Field: field}))
}

func TestUnreadableFieldIsNullWithAReason(t *testing.T) {
	s, f := keyringtest.Fields(t)
	k := keyringtest.KEKs(t, "a")
	ring := keyringtest.Keys(t, k, "u-1", "u-2")
	text := func(subject, field, plain string) string { return sealText(t, ring, subject, field, plain) }
	bits := func(subject, field string) string { return sealBytes(t, ring, subject, field) }
	good := text("u-1", "email", "anna@example.com")
	rings, locked := hiddenRings(t, k, ring)
	hidden := func(pairs ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	for name, c := range map[string]struct {
		ring, id, email, mail, photo string
		want                         map[string]string
	}{
		"readable":                 {"", `"u-1"`, good, good, bits("u-1", "photo"), hidden()},
		"moved to another subject": {"", `"u-2"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"another subject's key":    {"", `"u-2"`, text("u-2", "email", "x"), "", bits("u-2", "email"), hidden("data.photo", "tampered")},
		"moved to another field":   {"", `"u-1"`, text("u-1", "photo", "x"), good, bits("u-1", "email"), hidden("data.email", "tampered", "data.photo", "tampered")},
		"changed":                  {"", `"u-1"`, good[:len(good)-2] + "AA", "sealed:", bits("u-1", "photo"), hidden("data.email", "tampered", "data.mail", "tampered")},
		"without a subject":        {"", `null`, good, "", bits("u-1", "photo"), hidden("data.email", "tampered", "data.photo", "tampered")},
		"not UTF-8":                {"", `"u-1"`, text("u-1", "email", "\xff"), "", bits("u-1", "photo"), hidden("data.email", "tampered")},
		"forgotten":                {"erased", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "erased", "data.photo", "erased")},
		"with another key":         {"another", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"without the key":          {"empty", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"without the KEK":          {"locked", `"u-1"`, locked, "", bits("u-1", "photo"), hidden("data.email", "no_kek", "data.photo", "no_key")},
	} {
		body := keyringtest.Body(t, s, fmt.Sprintf(`{"id":%s,"email":%q,"mail":%q,"photo":%q,"city":"Ulm"}`, c.id, c.email, c.mail, c.photo))
		got, why := keyringtest.JSON(t, f, rings[c.ring], body)
		if !maps.Equal(why, c.want) {
			t.Errorf("%s: hidden %v, want %v", name, why, c.want)
		}
		for path := range c.want {
			if want := fmt.Sprintf(`%q:null`, strings.TrimPrefix(path, "data.")); !strings.Contains(got, want) {
				t.Errorf("%s: %s is not null: %s", name, path, got)
			}
		}
		if strings.Contains(got, "sealed:") {
			t.Errorf("%s: a ciphertext is shown: %s", name, got)
		}
	}
}

// BenchmarkShow decrypts an event with two encrypted fields.
// The id of the data subject can be within a nullable record. An event without it cannot be
// encrypted, and says why.
func TestSubjectWithinANullableRecord(t *testing.T) {
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(`
name: t
topics: {people: {partitions: 1, types: [Person], envelope: none}}
encryption: {key_topic: keys, subject: {Person: ref.user.id}}
`)}, topology.Options{Schemas: fstest.MapFS{"Person.avsc": {Data: []byte(`{"type":"record","name":"Person","fields":[{"name":"email","type":"string","millrace.pii":true},
		{"name":"ref","type":["null",{"type":"record","name":"Ref","fields":[{"name":"user","type":[{"type":"record","name":"User","fields":[{"name":"n","type":"int"},{"name":"id","type":["null","long"]}]},"null"]}]}]}]}`)}}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := keyring.NewFields(plan.Encryption, plan.Topics[0].Types[0])
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		"\x02x\x02\x00\x02\x02\x0e": "7",
		"\x02x\x02\x00\x02\x00":     "ref.user.id: the subject of encrypted fields: expected the record key, found null",
		"\x02x\x02\x02":             "ref.user.id: the subject of encrypted fields: ref or ref.user is null",
		"\x02x\x00":                 "ref.user.id: the subject of encrypted fields: ref or ref.user is null",
	} {
		var v pipeline.View
		if err := f.Walk([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		got, err := f.Subject(&v)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%x: %s, want %s", body, got, want)
		}
	}
}

func BenchmarkShow(b *testing.B) {
	s, f := keyringtest.Fields(b)
	ring := keyringtest.Keys(b, keyringtest.KEKs(b, "a"), "u-1")
	body := keyringtest.Seal(b, f, ring, keyringtest.Body(b, s, `{"id":"u-1","email":"anna@example.com","mail":"x"}`))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Open(body, ring); err != nil {
			b.Fatal(err)
		}
	}
}
