package keyring_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"testing"

	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
	"millrace/pipeline/seal"
)

func TestTaggedFieldsAreSealedAndShown(t *testing.T) {
	plan := keyringtest.PersonTopology(t, 1)
	s := plan.Topics[0].Types[0]
	f, err := keyring.NewFields(plan.Encryption, s)
	if err != nil {
		t.Fatal(err)
	}
	ring := keyringtest.TestRing(t, keyringtest.TestKEKs(t, "a"), "u-1", "u-2")
	for _, data := range []string{
		`{"id":"u-1","email":"anna@example.com","mail":"","photo":"/////w==","city":"Bonn"}`,
		`{"id":"u-1","email":"sealed:","mail":"ünï","photo":null,"city":"Bonn"}`,
	} {
		body := keyringtest.PersonBody(t, s, data)
		sealed := keyringtest.SealBody(t, f, ring, body)
		if bytes.Contains(sealed, []byte("anna")) || bytes.Contains(sealed, []byte("\xff\xff\xff\xff")) || !bytes.Contains(sealed, []byte("Bonn")) {
			t.Errorf("%q", sealed)
		}
		if _, err := codec.AppendJSON(nil, s.Root(), sealed); err != nil {
			t.Errorf("it is no %s any more: %v", s.Name(), err)
		}
		if got, hidden := keyringtest.ShownJSON(t, f, ring, sealed); got != data || len(hidden) > 0 {
			t.Errorf("it is shown as %s, %v\nand was   %s", got, hidden, data)
		}
	}
	// What was written before it was tagged, is shown as it stands.
	data := `{"id":null,"email":"anna@example.com","mail":"","photo":null,"city":"Ulm"}`
	if got, hidden := keyringtest.ShownJSON(t, f, ring, keyringtest.PersonBody(t, s, data)); got != data || len(hidden) > 0 {
		t.Errorf("plaintext is shown as %s, %v", got, hidden)
	}
}

func TestWhatCannotBeReadIsNullAndSaysWhy(t *testing.T) {
	plan := keyringtest.PersonTopology(t, 1)
	s := plan.Topics[0].Types[0]
	f, err := keyring.NewFields(plan.Encryption, s)
	if err != nil {
		t.Fatal(err)
	}
	k := keyringtest.TestKEKs(t, "a")
	ring := keyringtest.TestRing(t, k, "u-1", "u-2")
	text := func(subject, field, plain string) string {
		key, err := ring.Current(subject)
		if err != nil {
			t.Fatal(err)
		}
		return string(key.AppendText(nil, []byte(plain), seal.Place{Subject: subject, Field: field}))
	}
	bits := func(subject, field string) string {
		key, err := ring.Current(subject)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(key.AppendBytes(nil, []byte("x"), seal.Place{Subject: subject, Field: field}))
	}
	good := text("u-1", "email", "anna@example.com")
	mark, err := seal.Erased("u-1", harness.Now)
	if err != nil {
		t.Fatal(err)
	}
	record, err := k.NewKey("u-1", harness.Now)
	if err != nil {
		t.Fatal(err)
	}
	rings := map[string]*seal.Ring{"": ring, "erased": keyringtest.TestRing(t, k, "u-1"), "another": seal.NewRing(k), "locked": seal.NewRing(nil), "empty": seal.NewRing(k)}
	for _, err := range []error{rings["erased"].Take(mark), rings["another"].Take(record), rings["locked"].Take(record)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The locked ring has the very key, and nothing to unwrap it with.
	unlocked := seal.NewRing(k)
	if err := unlocked.Take(record); err != nil {
		t.Fatal(err)
	}
	key, err := unlocked.Current("u-1")
	if err != nil {
		t.Fatal(err)
	}
	locked := string(key.AppendText(nil, []byte("anna"), seal.Place{Subject: "u-1", Field: "email"}))

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
		"well":                     {"", `"u-1"`, good, good, bits("u-1", "photo"), hidden()},
		"moved to another subject": {"", `"u-2"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"of another subject's key": {"", `"u-2"`, text("u-2", "email", "x"), "", bits("u-2", "email"), hidden("data.photo", "tampered")},
		"moved to another field":   {"", `"u-1"`, text("u-1", "photo", "x"), good, bits("u-1", "email"), hidden("data.email", "tampered", "data.photo", "tampered")},
		"changed":                  {"", `"u-1"`, good[:len(good)-2] + "AA", "sealed:", bits("u-1", "photo"), hidden("data.email", "tampered", "data.mail", "tampered")},
		"without a subject":        {"", `null`, good, "", bits("u-1", "photo"), hidden("data.email", "tampered", "data.photo", "tampered")},
		"not UTF-8":                {"", `"u-1"`, text("u-1", "email", "\xff"), "", bits("u-1", "photo"), hidden("data.email", "tampered")},
		"forgotten":                {"erased", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "erased", "data.photo", "erased")},
		"with another key":         {"another", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"without the key":          {"empty", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"without the kek":          {"locked", `"u-1"`, locked, "", bits("u-1", "photo"), hidden("data.email", "no_kek", "data.photo", "no_key")},
	} {
		body := keyringtest.PersonBody(t, s, fmt.Sprintf(`{"id":%s,"email":%q,"mail":%q,"photo":%q,"city":"Ulm"}`, c.id, c.email, c.mail, c.photo))
		got, why := keyringtest.ShownJSON(t, f, rings[c.ring], body)
		if !maps.Equal(why, c.want) {
			t.Errorf("%s: hidden are %v, want %v", name, why, c.want)
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

// BenchmarkShow is what it costs to show an event with two encrypted fields.
func BenchmarkShow(b *testing.B) {
	plan := keyringtest.PersonTopology(b, 1)
	s := plan.Topics[0].Types[0]
	f, err := keyring.NewFields(plan.Encryption, s)
	if err != nil {
		b.Fatal(err)
	}
	ring := keyringtest.TestRing(b, keyringtest.TestKEKs(b, "a"), "u-1")
	body := keyringtest.SealBody(b, f, ring, keyringtest.PersonBody(b, s, `{"id":"u-1","email":"anna@example.com","mail":"x"}`))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Open(body, ring); err != nil {
			b.Fatal(err)
		}
	}
}
