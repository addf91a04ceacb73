package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/e2e/kafkatest"
)

// Schemas as Debezium and the Avro converter of Kafka Connect register them. The second
// version of a customer has one column more.
const (
	customerKeySchema = `{"type":"record","name":"Key","namespace":"crm.public.customers","fields":[{"name":"id","type":{"type":"int","connect.default":0},"default":0}],"connect.name":"crm.public.customers.Key"}`

	customerEnvelopeSchema = `{"type":"record","name":"Envelope","namespace":"crm.public.customers","fields":[
		{"name":"before","type":["null",{"type":"record","name":"Value","fields":[
			{"name":"id","type":{"type":"int","connect.default":0},"default":0},
			{"name":"email","type":"string"},
			{"name":"name","type":["null","string"],"default":null},
			PHONE{"name":"balance","type":["null",{"type":"bytes","scale":2,"precision":10,"connect.version":1,"connect.parameters":{"scale":"2","connect.decimal.precision":"10"},"connect.name":"org.apache.kafka.connect.data.Decimal","logicalType":"decimal"}],"default":null},
			{"name":"created_at","type":{"type":"long","connect.version":1,"connect.name":"io.debezium.time.MicroTimestamp"}},
			{"name":"born_on","type":["null",{"type":"int","connect.version":1,"connect.name":"io.debezium.time.Date"}],"default":null},
			{"name":"password_hash","type":"string"}],"connect.name":"crm.public.customers.Value"}],"default":null},
		{"name":"after","type":["null","Value"],"default":null},
		{"name":"source","type":{"type":"record","name":"Source","namespace":"io.debezium.connector.postgresql","fields":[
			{"name":"version","type":"string"},
			{"name":"ts_ms","type":"long"},
			{"name":"snapshot","type":[{"type":"string","connect.version":1,"connect.parameters":{"allowed":"true,last,false,incremental"},"connect.default":"false","connect.name":"io.debezium.data.Enum"},"null"],"default":"false"},
			{"name":"table","type":"string"},
			{"name":"lsn","type":["null","long"],"default":null}],"connect.name":"io.debezium.connector.postgresql.Source"}},
		{"name":"transaction","type":["null",{"type":"record","name":"block","namespace":"event","fields":[{"name":"id","type":"string"},{"name":"total_order","type":"long"}],"connect.version":1,"connect.name":"event.block"}],"default":null},
		{"name":"op","type":"string"},
		{"name":"ts_ms","type":["null","long"],"default":null}],"connect.version":2,"connect.name":"crm.public.customers.Envelope"}`

	orderKeySchema = `{"type":"record","name":"Key","namespace":"crm.public.orders","fields":[{"name":"id","type":"long"}],"connect.name":"crm.public.orders.Key"}`

	// Flattened by ExtractNewRecordState.
	orderValueSchema = `{"type":"record","name":"Value","namespace":"crm.public.orders","fields":[
		{"name":"id","type":"long"},
		{"name":"customer_id","type":"int"},
		{"name":"total","type":{"type":"bytes","scale":2,"precision":10,"connect.version":1,"connect.name":"org.apache.kafka.connect.data.Decimal","logicalType":"decimal"}},
		{"name":"__op","type":["null","string"],"default":null},
		{"name":"__deleted","type":["null","string"],"default":null}],"connect.name":"crm.public.orders.Value"}`
)

// A sourceTable plays the table of a database and Debezium, which reads its log. Each
// change is a record on a topic.
type sourceTable struct {
	t       *testing.T
	cl      *kgo.Client
	topic   string
	key     framed
	value   framed
	rng     *rand.Rand
	rows    map[int32]map[string]any // the rows of now
	live    []int32                  // their ids
	gone    []int32                  // ids of deleted rows
	changes int
	lsn     int64
	ops     map[string]int
}

// framed is a schema of a registry.
type framed struct {
	id     uint32
	schema *avro.Schema
}

// register adds a schema to a registry, as the converters of Kafka Connect do.
func register(t *testing.T, registry, subject, schema string) framed {
	t.Helper()
	resp, err := http.Post(registry+"/subjects/"+subject+"/versions", "application/vnd.schemaregistry.v1+json", strings.NewReader(inBody(schema))) //nolint:noctx // ends with the test's registry
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ ID uint32 }
	if err := json.Unmarshal(body, &answer); err != nil || answer.ID == 0 {
		t.Fatalf("%s: %s %s %v", subject, resp.Status, body, err)
	}
	parsed, err := avro.Parse(schema)
	if err != nil {
		t.Fatal(err)
	}
	return framed{answer.ID, parsed}
}

func (f framed) encode(t *testing.T, v any) []byte {
	t.Helper()
	out, err := f.schema.AppendEncode(binary.BigEndian.AppendUint32([]byte{0}, f.id), v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// write writes a record. The client assigns partitions as Java's does.
func (s *sourceTable) write(key, value any) {
	r := &kgo.Record{Topic: s.topic, Key: s.key.encode(s.t, key)}
	if value != nil {
		r.Value = s.value.encode(s.t, value)
	}
	s.cl.Produce(s.t.Context(), r, func(_ *kgo.Record, err error) {
		if err != nil {
			s.t.Error(err)
		}
	})
}

// change writes the envelope of a change, and the tombstone that follows a deletion.
func (s *sourceTable) change(op string, id int32, before, after map[string]any) {
	s.lsn++
	s.changes++
	s.ops[op]++
	envelope := map[string]any{"before": nil, "after": nil, "transaction": nil, "op": op, "ts_ms": s.lsn,
		"source": map[string]any{"version": "3.0", "ts_ms": s.lsn, "snapshot": fmt.Sprint(op == "r"), "table": "customers", "lsn": s.lsn}}
	if before != nil {
		envelope["before"] = before
	}
	if after != nil {
		after["lsn"] = s.lsn // for the comparison; the schema has no such column
		envelope["after"] = after
	}
	s.write(map[string]any{"id": id}, envelope)
	if op == "d" {
		s.write(map[string]any{"id": id}, nil)
	}
}

func (s *sourceTable) insert(op string, id int32) {
	row := map[string]any{
		"id": id, "email": fmt.Sprintf("user-%d-%d@example.com", id, s.lsn), "name": nil, "phone": "1", "balance": nil, "born_on": nil,
		"created_at": s.rng.Int64N(2_000_000_000_000_000) - 1_000_000_000_000_000, "password_hash": "secret",
	}
	s.rows[id] = row
	s.live = append(s.live, id)
	s.change(op, id, nil, row)
}

func (s *sourceTable) update(id int32) {
	before := s.rows[id]
	after := map[string]any{}
	for name, v := range before {
		after[name] = v
	}
	switch s.rng.IntN(4) {
	case 0:
		after["name"] = fmt.Sprintf("Zoë \"%d\" \\ \t☃", s.lsn)
	case 1:
		after["name"], after["born_on"] = nil, int32(s.rng.IntN(30_000)-10_000)
	case 2:
		after["balance"] = big.NewRat(s.rng.Int64N(2_000_000_000)-1_000_000_000, 100)
	default:
		after["email"], after["balance"] = fmt.Sprintf("new-%d@example.com", s.lsn), nil
	}
	s.rows[id] = after
	s.change("u", id, before, after)
}

func (s *sourceTable) delete(at int) (row map[string]any) {
	id := s.live[at]
	row = s.rows[id]
	delete(s.rows, id)
	s.live[at] = s.live[len(s.live)-1]
	s.live = s.live[:len(s.live)-1]
	s.gone = append(s.gone, id)
	s.change("d", id, row, nil)
	return row
}

// play makes n changes: inserts, updates, deletes, inserts of deleted ids, snapshots of
// rows while they change, and changes of primary keys, which Debezium reports as a
// deletion and an insert.
func (s *sourceTable) play(n int) {
	next := int32(len(s.live) + len(s.gone) + 1)
	for end := s.changes + n; s.changes < end; {
		switch p := s.rng.IntN(100); {
		case len(s.live) < 100 || p < 12:
			s.insert("c", next)
			next++
		case p < 24 && len(s.gone) > 0:
			at := s.rng.IntN(len(s.gone))
			id := s.gone[at]
			s.gone = slices.Delete(s.gone, at, at+1)
			s.insert("c", id)
		case p < 44:
			s.delete(s.rng.IntN(len(s.live)))
		case p < 46 && s.changes+1 < end:
			row := s.delete(s.rng.IntN(len(s.live)))
			moved := map[string]any{}
			for name, v := range row {
				moved[name] = v
			}
			moved["id"] = next
			s.rows[next] = moved
			s.live = append(s.live, next)
			s.change("c", next, nil, moved)
			next++
		case p < 50: // an incremental snapshot
			id := s.live[s.rng.IntN(len(s.live))]
			s.change("r", id, nil, s.rows[id])
		default:
			s.update(s.live[s.rng.IntN(len(s.live))])
		}
	}
}

func (s *sourceTable) flush() {
	s.t.Helper()
	if err := s.cl.Flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// A changeWorld is the example on a broker, with names of its own.
type changeWorld struct {
	t        *testing.T
	broker   *kafkatest.Broker
	registry string
	run      string // begins the names of topics, pipelines and the topology
	where    []string
}

const exampleMaskKey = "for this example only"

func newChangeWorld(t *testing.T, b *kafkatest.Broker) *changeWorld {
	t.Helper()
	const example = "../../examples/change-data"
	text, err := os.ReadFile(filepath.Join(example, "topology.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w := &changeWorld{t: t, broker: b, registry: sandboxRegistry(t), run: fmt.Sprintf("crm%d", time.Now().UnixNano())}
	text = regexp.MustCompile(`(?m)^name: crm$`).ReplaceAll(text, []byte("name: "+w.run))
	text = regexp.MustCompile(`(?m)(^  |\b(?:from|to|topic|table|dead_letter|snapshots): )((?:crm\.)?(?:public\.)?(?:customers|orders|dead_letters)(?:\.snapshots)?)([:,}]|$)`).
		ReplaceAll(text, []byte("${1}"+w.run+"-${2}${3}"))
	file := filepath.Join(t.TempDir(), "topology.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.where = []string{"-b", strings.Join(b.Brokers(), ","), "-r", w.registry, "-t", file, "--schemas", filepath.Join(example, "schemas")}
	if out, err := exec.Command(filepath.Join(bin, "processor"), append([]string{"lint", "--strict"}, w.where[4:]...)...).CombinedOutput(); err != nil {
		t.Fatalf("processor lint: %v\n%s", err, out)
	}
	return w
}

func (w *changeWorld) topic(name string) string { return w.run + "-" + name }

// table returns a source table whose changes go to a topic of the example.
func (w *changeWorld) table(topic string, key, value framed) *sourceTable {
	w.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.broker.Brokers()...), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil))) // murmur2, as in Java
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(cl.Close)
	return &sourceTable{t: w.t, cl: cl, topic: w.topic(topic), key: key, value: value,
		rng: rand.New(rand.NewPCG(11, 0)), rows: map[int32]map[string]any{}, ops: map[string]int{}}
}

// start starts a worker of the example, which creates missing topics.
func (w *changeWorld) start(program string, args ...string) *worker {
	w.t.Helper()
	return startWorker(w.t, program, append(args, w.where...)...)
}

// rows returns the rows of a compacted topic by key, as a client in Java reads them.
func (w *changeWorld) rows(topic string) map[string]map[string]any {
	w.t.Helper()
	list, err := w.broker.Rows(w.t.Context(), w.registry, w.topic(topic))
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]map[string]any{}
	for _, row := range list {
		if out[row.Key] != nil {
			w.t.Errorf("%s has two rows %s", topic, row.Key)
		}
		out[row.Key] = row.Value
	}
	return out
}

// sameRows compares rows by their JSON.
func sameRows(t *testing.T, what string, got, want map[string]map[string]any) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d rows, want %d", what, len(got), len(want))
	}
	wrong := 0
	for key, row := range want {
		have, err := json.Marshal(got[key])
		if err != nil {
			t.Fatal(err)
		}
		expected, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		if string(have) != string(expected) {
			if wrong++; wrong <= 5 {
				t.Errorf("%s: the row %s is\n%s, want\n%s", what, key, have, expected)
			}
		}
	}
	if wrong > 5 {
		t.Errorf("%s: %d rows are wrong", what, wrong)
	}
}

// masked returns the digest of a text by the stage mask.
func masked(text string) string {
	h := hmac.New(sha256.New, []byte(exampleMaskKey))
	h.Write([]byte(text))
	return hex.EncodeToString(h.Sum(nil))
}

func twoDigits(v any) any {
	if r, ok := v.(*big.Rat); ok {
		return json.Number(r.FloatString(2))
	}
	return nil
}

// TestKafkaChangeDataEqualsTheSourceTable sends 50,000 changes of a table through the
// example, whose processor is killed meanwhile. A client that is not ours finds the rows of
// the table on the compacted topic, the projection has their states, and another pipeline
// looks them up.
func TestKafkaChangeDataEqualsTheSourceTable(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		w := newChangeWorld(t, b)
		keys := register(t, w.registry, "crm.public.customers-key", customerKeySchema)
		customers := w.table("crm.public.customers", keys, register(t, w.registry, "crm.public.customers-value", strings.Replace(customerEnvelopeSchema, "PHONE", "", 1)))
		projector := w.start("projector", "--data-dir", t.TempDir())
		processor := w.start("processor", "--pipeline", w.run+"-customers", "--instance", "a")
		for id := range int32(500) {
			customers.insert("r", id+1)
		}
		customers.play(24_500)
		customers.flush()
		if err := processor.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-processor.exited
		processor = w.start("processor", "--pipeline", w.run+"-customers", "--instance", "a")
		customers.value = register(t, w.registry, "crm.public.customers-value", strings.Replace(customerEnvelopeSchema, "PHONE", `{"name":"phone","type":["null","string"],"default":null},`, 1))
		customers.play(25_000)
		customers.write(map[string]any{"id": -1}, nil) // a key that no record had
		customers.flush()
		if customers.changes != 50_000 {
			t.Errorf("%d changes", customers.changes)
		}
		t.Logf("%v, %d rows", customers.ops, len(customers.rows))

		awaitLag(t, processor, b.Brokers(), w.run+"-"+w.run+"-customers", customers.topic)
		processor.stop(t)
		rows, states := map[string]map[string]any{}, map[string]map[string]any{}
		for id, row := range customers.rows {
			rows[fmt.Sprintf(`{"id": %d}`, id)] = map[string]any{"id": id, "name": row["name"], "email": masked(row["email"].(string)), "balance": twoDigits(row["balance"]),
				"created_at": row["created_at"], "born_on": row["born_on"], "lsn": row["lsn"]}
			states[strconv.Itoa(int(id))] = map[string]any{"name": row["name"], "balance": twoDigits(row["balance"])}
		}
		sameRows(t, "customers", w.rows("customers"), rows)
		awaitLag(t, projector, b.Brokers(), w.run+"-projector", customers.topic)
		live, deleted := w.states(projector)
		if sameRows(t, "projection customer", live, states); deleted != len(customers.gone) {
			t.Errorf("%d deleted customers, want %d", deleted, len(customers.gone))
		}
		projector.stop(t)
		w.checkOrders(customers)
		if n := len(readCommitted(t, b.Brokers(), w.topic("crm.dead_letters"))); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// states returns the live states of the projection by id, without what depends on the
// history of a row, and the number of deleted aggregates.
func (w *changeWorld) states(projector *worker) (out map[string]map[string]any, deleted int) {
	w.t.Helper()
	out = map[string]map[string]any{}
	for cursor := ""; ; {
		_, body, err := get(w.t.Context(), projector.url+"/v1/projections/customer?limit=1000&cursor="+cursor)
		if err != nil {
			w.t.Fatal(err)
		}
		var page struct {
			Items []struct {
				ID      string
				Deleted bool
				State   map[string]any
			}
			Next string `json:"next_cursor"`
		}
		d := json.NewDecoder(strings.NewReader(string(body)))
		d.UseNumber()
		if err := d.Decode(&page); err != nil {
			w.t.Fatalf("%v: %s", err, body)
		}
		for _, item := range page.Items {
			if item.Deleted {
				deleted++
				continue
			}
			delete(item.State, "changes")
			delete(item.State, "last_op")
			if text, ok := item.State["balance"].(string); ok {
				item.State["balance"] = json.Number(text)
			}
			out[item.ID] = item.State
		}
		if cursor = page.Next; cursor == "" {
			return out, deleted
		}
	}
}

// checkOrders sends flattened changes of orders through a pipeline that looks up their
// customers. Some of these were deleted.
func (w *changeWorld) checkOrders(customers *sourceTable) {
	t := w.t
	t.Helper()
	orders := w.table("crm.public.orders", register(t, w.registry, "crm.public.orders-key", orderKeySchema), register(t, w.registry, "crm.public.orders-value", orderValueSchema))
	processor := w.start("processor", "--pipeline", w.run+"-orders") // it reads the whole table first
	rows := map[string]map[string]any{}
	change := func(op string, id int64, customer int32, cents int64) {
		key := fmt.Sprintf(`{"id": %d}`, id)
		orders.write(map[string]any{"id": id}, map[string]any{"id": id, "customer_id": customer, "total": big.NewRat(cents, 100), "__op": op, "__deleted": fmt.Sprint(op == "d")})
		if op == "d" {
			orders.write(map[string]any{"id": id}, nil)
			delete(rows, key)
			return
		}
		var name any
		if row := customers.rows[customer]; row != nil {
			name = row["name"]
		}
		rows[key] = map[string]any{"id": id, "customer_id": customer, "customer_name": name, "total": twoDigits(big.NewRat(cents, 100))}
	}
	all := append(slices.Clone(customers.live), customers.gone...)
	for id := range int64(1000) {
		change("c", id, all[orders.rng.IntN(len(all))], id)
	}
	for id := int64(0); id < 1000; id += 3 {
		change("d", id, 1, 0)
		if id%2 == 0 {
			change("c", id, all[orders.rng.IntN(len(all))], -id)
		}
	}
	orders.flush()
	awaitLag(t, processor, w.broker.Brokers(), w.run+"-"+w.run+"-orders", orders.topic)
	processor.stop(t)
	sameRows(t, "orders", w.rows("orders"), rows)
	named := 0
	for _, row := range rows {
		if row["customer_name"] != nil {
			named++
		}
	}
	if named < 30 || named == len(rows) {
		t.Errorf("%d of %d orders have a customer with a name", named, len(rows))
	}
}
