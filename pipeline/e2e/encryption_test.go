package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/sandbox"
	"millrace/schemas"
)

// sealedBox is a rebuildBox whose topology encrypts personal fields. Events go through a
// pipeline to two projections: users, and orders with the customer's name.
type sealedBox struct {
	*rebuildBox
	flags   []string            // flags for Kafka, the registry and the schemas
	secrets map[string][]string // personal values by user
	logs    []string            // log files of the workers
	worker  *worker             // the projector that start started last
}

func newSealedBox(t *testing.T) *sealedBox {
	t.Helper()
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &sealedBox{rebuildBox: &rebuildBox{t: t, dir: t.TempDir(), brokers: box.Brokers()}, secrets: map[string][]string{
		"u-anna": {"anna.secret@example.com", "Anna Secretly", "anna.new@example.com"},
		"u-bert": {"bert.hidden@example.com", "Bert Hiddenly"},
	}}
	dir := filepath.Join(b.dir, "schemas")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const tagged = `, "millrace.pii": true}`
	change := func(name string, pairs ...string) {
		text, err := schemas.FS.ReadFile(name + ".avsc")
		if err != nil {
			t.Fatal(err)
		}
		out := strings.NewReplacer(pairs...).Replace(string(text))
		if out == string(text) {
			t.Fatalf("%s.avsc does not have the expected fields", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".avsc"), []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	field := func(name, typ, def string) (before, after string) {
		before = fmt.Sprintf(`{"name": %q, "type": %s%s}`, name, typ, def)
		return before, strings.TrimSuffix(before, "}") + tagged
	}
	both := func(typ, def string) []string {
		e1, e2 := field("email", typ, def)
		n1, n2 := field("name", typ, def)
		return []string{e1, e2, n1, n2}
	}
	change("UserCreated", both(`"string"`, "")...)
	change("UserUpdated", both(`["null", "string"]`, `, "default": null`)...)
	change("User", both(`"string"`, `, "default": ""`)...)
	customer := `{"name": "user_id", "type": "string"%s}, {"name": "customer", "type": ["null", "string"], "default": null, "millrace.pii": "name"}`
	change("OrderCreated", `{"name": "user_id", "type": "string"}`, fmt.Sprintf(customer, ""))
	change("Order", `{"name": "user_id", "type": "string", "default": ""}`, fmt.Sprintf(customer, `, "default": ""`))
	b.env = append(os.Environ(), "MILLRACE_BROKERS="+strings.Join(box.Brokers(), ","), "MILLRACE_REGISTRY="+box.RegistryURL(), "MILLRACE_SCHEMAS="+dir)
	b.topology = filepath.Join(b.dir, "topology.yaml")
	b.flags = []string{"-t", b.topology, "-b", box.Brokers()[0], "-r", box.RegistryURL(), "--schemas", dir, "--sessions", "1", "--log-level", "trace"}
	if err := os.WriteFile(b.topology, []byte(`name: sealed
topics:
  sealed.events: {partitions: 2, types: [UserCreated, UserUpdated, OrderCreated]}
  sealed.enriched: {partitions: 2}
  sealed.dead_letters: {partitions: 1}
encryption:
  key_topic: sealed.keys
  subject: {UserCreated: data.id, UserUpdated: data.id, OrderCreated: data.user_id, User: id, Order: user_id}
pipelines:
  enrich:
    from: sealed.events
    stages:
      - filter: {keep: "type != 'OrderCreated' || data.customer != null"}
      - enrich: {set: {metadata.seen: "'yes'"}}
    to: sealed.enriched
    dead_letter: sealed.dead_letters
projections:
  user:
    from: sealed.enriched
    key: data.id
    state: User
    on:
      UserCreated: {set: {id: data.id, email: data.email, name: data.name, status: "'active'"}}
      UserUpdated: {set: {email: "data.email != null ? data.email : state.email"}}
    snapshots: sealed.user.snapshots
  order:
    from: sealed.enriched
    key: data.id
    state: Order
    on:
      OrderCreated: {set: {id: data.id, user_id: data.user_id, customer: data.customer}}
    snapshots: sealed.order.snapshots
`), 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// keks writes a file of key-encryption keys with these ids, newest last, and returns its
// path.
func (b *sealedBox) keks(name string, ids ...string) string {
	b.t.Helper()
	var text strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&text, "%s %s\n", id, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(id), 32)[:32]))
	}
	file := filepath.Join(b.dir, name)
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return file
}

// send sends events, and returns the producer's error.
func (b *sealedBox) send(kek string, lines ...string) error {
	b.t.Helper()
	file := filepath.Join(b.dir, "events.jsonl")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
	_, err := b.run("producer", "send", "--kek-file", kek, file)
	return err
}

func (b *sealedBox) user(id string) string {
	return fmt.Sprintf(`{"type":"UserCreated","data":{"id":%q,"email":%q,"name":%q}}`, id, b.secrets[id][0], b.secrets[id][1])
}

func (b *sealedBox) order(id, user string) string {
	return fmt.Sprintf(`{"type":"OrderCreated","data":{"id":%q,"user_id":%q,"customer":%q,"items":[],"total_amount":1}}`, id, user, b.secrets[user][1])
}

// leaks returns a message for each secret of the users in data. name describes data.
func (b *sealedBox) leaks(name string, data []byte, of ...string) (out []string) {
	for _, id := range of {
		for _, s := range b.secrets[id] {
			if bytes.Contains(data, []byte(s)) {
				out = append(out, fmt.Sprintf("%s has %q", name, s))
			}
		}
	}
	return out
}

// answers queries users and orders through all HTTP endpoints and commands, and returns
// all answers.
func (b *sealedBox) answers(w *worker) []byte {
	b.t.Helper()
	var all bytes.Buffer
	for _, path := range []string{
		"/v1/projections/user", "/v1/projections/order", "/v1/events?type=UserCreated", "/v1/events?type=UserUpdated", "/v1/events?type=OrderCreated",
		"/v1/projections/order/o-1/history", "/v1/projections/order/o-1/why", "/v1/projections/order/o-1/diff", "/v1/projections/order/o-1?at_version=1",
		"/v1/projections/order/o-1?at_time=2100-01-01T00:00:00Z", "/v1/projections/user/u-anna", "/v1/projections/user/u-anna?at_version=1",
		"/v1/projections/user/u-anna/history", "/v1/projections/user/u-anna/why", "/v1/projections/user/u-anna/diff",
	} {
		body, status, err := fetch(w.url + path)
		if err != nil && status != http.StatusNotFound {
			b.t.Error(err)
		}
		fmt.Fprintf(&all, "%s %s\n", path, body)
	}
	all.Write(b.feed(w.url + "/v1/projections/order/feed?from=beginning"))
	for _, args := range [][]string{{"list", "user"}, {"list", "order"}, {"get", "order", "o-1"}, {"events", "UserCreated"}, {"history", "order", "o-1"}} {
		cmd := b.command(b.t.Context(), "projector", append(args, "--address", w.url)...)
		cmd.Args = slices.DeleteFunc(cmd.Args, func(a string) bool { return a == "-t" || a == b.topology })
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.t.Errorf("%v: %v\n%s", args, err, out)
		}
		fmt.Fprintf(&all, "%v\n%s\n", args, out)
	}
	return all.Bytes()
}

// feed returns the messages of a feed up to the first frontier, which comes after all
// existing aggregates.
func (b *sealedBox) feed(url string) []byte {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	var all []byte
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		all = append(append(all, lines.Bytes()...), '\n')
		if lines.Text() == "event: frontier" {
			return all
		}
	}
	b.t.Errorf("the feed ends with: %s", all)
	return all
}

// TestPersonalFieldsAreEncryptedEverywhere checks that personal values are in plaintext
// only in answers: not on topics, in stores or in logs. It also replaces and loses
// key-encryption keys, and destroys the key of a user, whose values must then be gone.
func TestPersonalFieldsAreEncryptedEverywhere(t *testing.T) {
	t.Parallel() // mostly waits
	b := newSealedBox(t)
	first := b.keks("first", "2025")
	b.checkKeysAreRequired()
	if err := b.send(first, b.user("u-anna"), b.user("u-bert"), b.order("o-1", "u-anna"), b.order("o-2", "u-bert"),
		`{"type":"UserUpdated","data":{"id":"u-anna","email":"anna.new@example.com"}}`); err != nil {
		t.Fatal(err)
	}
	processor := b.process("processor", "--instance", "p")
	b.start("--kek-file", first)
	b.await("plaintext in the answers", b.everythingShown)
	b.worker.stop(t)
	b.checkNoPlaintext("before")
	b.start("--kek-file", first)
	b.await("the same after a restart", b.everythingShown)

	both := b.keks("both", "2025", "2026")
	b.checkKeyEncryptionKeys(first, both)
	b.checkForget(both)
	b.worker.stop(t)
	b.checkNoPlaintext("after")
	if err := os.RemoveAll(filepath.Join(b.dir, "one")); err != nil {
		t.Fatal(err)
	}
	b.start("--kek-file", both)
	b.await("the states to be restored", b.shows("u-bert", "email", b.secrets["u-bert"][0]+" "))
	b.await("the histories", filled(b.worker.url))
	b.checkGone("after the loss of the store")
	b.checkKeyTopic()
	b.rebuildOrders()
	b.checkGone("in another version")
	b.worker.stop(t)
	processor.stop(t)
	for _, file := range b.logs {
		text, err := os.ReadFile(file)
		if err != nil || len(text) == 0 {
			t.Errorf("reading the log %s: %d bytes, %v", file, len(text), err)
		}
		if l := b.leaks("the log "+file, text, "u-anna", "u-bert"); l != nil {
			t.Error(l)
		}
	}
}

// checkKeysAreRequired checks that programs that need key-encryption keys do not run
// without them.
func (b *sealedBox) checkKeysAreRequired() {
	b.t.Helper()
	if out, err := b.run("producer", "send", "--dry-run", os.DevNull); err != nil {
		b.t.Fatalf("a dry run needs no keys: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"producer", "send", os.DevNull}, {"projector", "run", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(b.dir, "none")}} {
		if _, err := b.run(args[0], args[1:]...); err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(err.Error(), "--kek-file") {
			b.t.Errorf("%v without keys: %v", args, err)
		}
	}
}

// everythingShown returns an error unless the answers hold all secrets in plaintext.
func (b *sealedBox) everythingShown() error {
	all := b.answers(b.worker)
	for id, of := range b.secrets {
		for _, s := range of {
			if !bytes.Contains(all, []byte(s)) {
				return fmt.Errorf("%s of %s is not in the answers:\n%s", s, id, all)
			}
		}
	}
	if bytes.Contains(all, []byte("sealed:")) || bytes.Contains(all, []byte(`"hidden":`)) {
		return fmt.Errorf("ciphertext in the answers:\n%s", all)
	}
	return nil
}

// checkNoPlaintext checks that the topics and the store hold no secrets.
func (b *sealedBox) checkNoPlaintext(when string) {
	b.t.Helper()
	var all []byte
	for _, topic := range []string{"sealed.events", "sealed.enriched", "sealed.dead_letters", "sealed.user.snapshots", "sealed.order.snapshots", "sealed.keys", "sealed-control"} {
		for _, r := range readCommitted(b.t, b.brokers, topic) {
			all = append(append(append(all, r.Key...), r.Value...), '\n')
			for _, h := range r.Headers {
				all = append(all, h.Value...)
			}
		}
	}
	if l := b.leaks("a topic", all, "u-anna", "u-bert"); l != nil {
		b.t.Errorf("%s: %v", when, l)
	}
	if !bytes.Contains(all, []byte("sealed:")) || !bytes.Contains(all, []byte("u-bert")) {
		b.t.Errorf("%s: the topics were not read", when)
	}
	var files []byte
	if err := filepath.WalkDir(filepath.Join(b.dir, "one"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files = append(files, data...)
		return err
	}); err != nil {
		b.t.Fatal(err)
	}
	if l := b.leaks("the store", files, "u-anna", "u-bert"); l != nil {
		b.t.Errorf("%s: %v", when, l)
	}
	if !bytes.Contains(files, []byte("u-bert")) {
		b.t.Errorf("%s: the files of the store were not read", when)
	}
}

// shows returns a condition: the projector answers with a value of a field, followed by a
// space and the reason if the field is hidden.
func (b *sealedBox) shows(user, field, want string) func() error {
	return func() error {
		body, _, err := fetch(b.worker.url + "/v1/projections/user/" + user)
		var a struct {
			State  map[string]any    `json:"state"`
			Hidden map[string]string `json:"hidden"`
		}
		if err == nil {
			err = json.Unmarshal(body, &a)
		}
		if got := fmt.Sprint(a.State[field], " ", a.Hidden[field]); err == nil && got != want {
			err = fmt.Errorf("%s of %s is %s, want %s", field, user, got, want)
		}
		return err
	}
}

// checkKeyEncryptionKeys adds a key-encryption key, and restarts the projector with
// different sets of them. The newest key-encryption key wraps new keys; the old one still
// unwraps old keys. first and both are files with the old one and with both.
func (b *sealedBox) checkKeyEncryptionKeys(first, both string) {
	b.t.Helper()
	b.secrets["u-carl"] = []string{"carl.covert@example.com", "Carl Covertly"}
	if err := b.send(both, b.user("u-carl")); err != nil {
		b.t.Fatal(err)
	}
	b.await("the missing key-encryption key to be reported", b.shows("u-carl", "email", "<nil> no_kek"))
	if err := b.send(first, b.user("u-carl")); err == nil || !strings.Contains(err.Error(), "2026") {
		b.t.Errorf("a producer without the key-encryption key: %v", err)
	}
	for _, test := range []struct{ flag, anna, carl string }{
		{"--kek-file=" + both, "anna.new@example.com ", "carl.covert@example.com "},
		{"--kek-file=" + b.keks("lost", "2026"), "<nil> no_kek", "carl.covert@example.com "},
		{"--no-decrypt", "<nil> no_kek", "<nil> no_kek"},
		{"--kek-file=" + both, "anna.new@example.com ", "carl.covert@example.com "},
	} {
		b.worker.stop(b.t)
		b.start(test.flag)
		b.await(test.flag, b.shows("u-anna", "email", test.anna))
		b.await(test.flag, b.shows("u-carl", "email", test.carl))
	}
}

// checkForget forgets a user and checks the report, the answers and the producer after
// that.
func (b *sealedBox) checkForget(kek string) {
	b.t.Helper()
	before, etag := etagOf(b.t, b.worker.url+"/v1/projections/order/o-1", "")
	if before != http.StatusOK {
		b.t.Fatal(before)
	}
	var done struct {
		Key struct {
			Topic     string `json:"topic"`
			Destroyed int    `json:"destroyed"`
		} `json:"key"`
		Workers []string `json:"workers"`
		Left    []struct {
			Where string `json:"where"`
			What  string `json:"what"`
			Until string `json:"until"`
		} `json:"left"`
	}
	if err := json.Unmarshal(b.must("projector", "forget", "user", "u-anna", "--yes", "--json"), &done); err != nil {
		b.t.Fatal(err)
	}
	if done.Key.Topic != "sealed.keys" || done.Key.Destroyed != 1 || len(done.Workers) != 1 {
		b.t.Errorf("forget reports %+v", done)
	}
	left := map[string]string{}
	for _, l := range done.Left {
		left[l.Where] += l.What + " | " + l.Until + "\n"
	}
	for where, want := range map[string]string{"sealed.keys": "24h0m0s from now", "sealed.enriched": "unreadable", "sealed.events": "unreadable", "sealed.order.snapshots": ""} {
		if !strings.Contains(left[where], want) {
			b.t.Errorf("forget reports for %s: %s, want %q", where, left[where], want)
		}
	}
	b.checkGone("immediately")
	if code, _ := etagOf(b.t, b.worker.url+"/v1/projections/order/o-1", etag); code != http.StatusOK {
		b.t.Errorf("the ETag of the plaintext is still valid: status %d", code)
	}
	if err := b.send(kek, `{"type":"UserUpdated","data":{"id":"u-anna","email":"anna.new@example.com"}}`); err == nil || !strings.Contains(err.Error(), "data.id: the subject was forgotten") {
		b.t.Errorf("an event of a forgotten user: %v", err)
	} else if l := b.leaks("the producer's message", []byte(err.Error()), "u-anna"); l != nil {
		b.t.Error(l)
	}
}

// checkGone checks that no answer holds the secrets of the forgotten user u-anna, and that
// the other users are as before.
func (b *sealedBox) checkGone(when string) {
	b.t.Helper()
	all := b.answers(b.worker)
	if l := b.leaks("an answer", all, "u-anna"); l != nil {
		b.t.Errorf("%s: %v\n%s", when, l, all)
	}
	if n := bytes.Count(all, []byte("encrypted and hidden:")); n < 3 { // list, get, history
		b.t.Errorf("%s: %d commands report hidden fields, want at least 3:\n%s", when, n, all)
	}
	if err := b.shows("u-bert", "email", b.secrets["u-bert"][0]+" ")(); err != nil {
		b.t.Errorf("%s: %v", when, err)
	}
	for _, query := range []string{"", "?at_version=1", "/history"} {
		body, _, err := fetch(b.worker.url + "/v1/projections/order/o-1" + query)
		if err != nil || !bytes.Contains(body, []byte(`"customer":null`)) || !bytes.Contains(body, []byte(`customer":"erased"`)) {
			b.t.Errorf("%s: o-1%s: %s, %v", when, query, body, err)
		}
	}
	if _, status, _ := fetch(b.worker.url + "/v1/projections/user/u-anna"); status != http.StatusNotFound {
		b.t.Errorf("%s: the forgotten user: status %d, want 404", when, status)
	}
}

// checkKeyTopic checks that the key of the forgotten user ends with a tombstone.
func (b *sealedBox) checkKeyTopic() {
	b.t.Helper()
	keys := map[string]bool{} // whether the last record has a value
	for _, r := range readCommitted(b.t, b.brokers, "sealed.keys") {
		if strings.HasPrefix(string(r.Key), "key/") && strings.HasSuffix(string(r.Key), "/u-anna") {
			keys[string(r.Key)] = r.Value != nil
		}
	}
	for key, exists := range keys {
		if exists {
			b.t.Errorf("the last record of %s is not null", key)
		}
	}
	if len(keys) != 1 {
		b.t.Errorf("keys of the forgotten user: %v, want one", keys)
	}
}

// rebuildOrders builds and promotes a second version of the projection of orders, from the
// same log.
func (b *sealedBox) rebuildOrders() {
	b.t.Helper()
	text, err := os.ReadFile(b.topology)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.topology, bytes.Replace(text, []byte("customer: data.customer}"), []byte(`customer: data.customer, status: "'paid'"}`), 1), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.must("projector", "rebuild", "order")
	b.await("version 2 to be comparable", func() error {
		_, err := b.run("projector", "diff", "order")
		return err
	})
	b.must("projector", "promote", "order")
	b.await("answers of version 2", func() error {
		body, _, err := fetch(b.worker.url + "/v1/projections/order/o-2")
		if err == nil && !(bytes.Contains(body, []byte(`"paid"`)) && bytes.Contains(body, []byte(b.secrets["u-bert"][1]))) {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
}

// process starts a worker and remembers its log.
func (b *sealedBox) process(name string, args ...string) *worker {
	b.t.Helper()
	w := startWorker(b.t, name, append(args, b.flags...)...)
	b.logs = append(b.logs, w.output)
	return w
}

// start starts the projector with the instance and data directory "one".
func (b *sealedBox) start(args ...string) {
	b.t.Helper()
	b.worker = b.process("projector", append([]string{"--instance", "one", "--data-dir", filepath.Join(b.dir, "one")}, args...)...)
}

// etagOf sends a GET request with an ETag in If-None-Match, unless it is "", and returns
// the status and the answer's ETag.
func etagOf(t *testing.T, url, known string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if known != "" {
		req.Header.Set("If-None-Match", known)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("ETag")
}
