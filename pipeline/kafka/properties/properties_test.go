package properties

import (
	"bytes"
	"flag"
	"fmt"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/auth"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Each property file in testdata/properties has a golden file with the dump and the
// warnings, or with the errors. Every secret in the property files contains the word
// canary.
func TestPropertyFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.properties")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".properties"), func(t *testing.T) {
			var got bytes.Buffer
			settings, err := Sources{File: file}.Load()
			if err != nil {
				fmt.Fprintln(&got, err)
			} else {
				if err := settings.Dump(&got); err != nil {
					t.Fatal(err)
				}
				for _, w := range settings.Warnings {
					fmt.Fprintln(&got, "warning:", w)
				}
				fmt.Fprintf(&got, "%+v\n%#v\n", settings.Config.SASL, settings.Config.SASL)
			}
			if strings.Contains(got.String(), "canary") {
				t.Errorf("a secret is shown:\n%s", got.String())
			}
			golden := strings.TrimSuffix(file, ".properties") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got.String(), want)
			}
		})
	}
}

func TestJavaAndLibrdkafkaNamesGiveTheSameConfig(t *testing.T) {
	load := func(lines ...string) kafka.Config {
		t.Helper()
		file := filepath.Join(t.TempDir(), "client.properties")
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Sources{File: file}.Load()
		if err != nil {
			t.Fatal(err)
		}
		return s.Config
	}
	want := kafka.Config{
		Brokers: []string{"a:1", "b:2"},
		TLS:     auth.TLS{Enabled: true, CAFile: "ca.pem", CertPEM: "CERT", KeyPEM: auth.NewSecret("KEY")},
		SASL:    auth.SASL{Mechanism: "PLAIN", Username: "u", Password: auth.NewSecret(`p"w\`)},
	}
	java := load(
		"bootstrap.servers=a:1,b:2", "security.protocol=SASL_SSL", "sasl.mechanism=PLAIN",
		`sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="u" password="p\\"w\\\\";`,
		"ssl.truststore.location=ca.pem", "ssl.keystore.certificate.chain=CERT", "ssl.keystore.key=KEY")
	librdkafka := load(
		"metadata.broker.list=a:1, b:2", "security.protocol=sasl_ssl", "sasl.mechanisms=PLAIN",
		"sasl.username=u", `sasl.password=p"w\\`,
		"ssl.ca.location=ca.pem", "ssl.certificate.pem=CERT", "ssl.key.pem=KEY")
	if !reflect.DeepEqual(java, want) {
		t.Errorf("Java's names give\n%+v, want\n%+v", java, want)
	}
	if !reflect.DeepEqual(librdkafka, want) {
		t.Errorf("librdkafka's names give\n%+v, want\n%+v", librdkafka, want)
	}
}

func TestTheMoreSpecificSourceOverrides(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "client.properties")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "bootstrap.servers=file:1\nclient.id=from-file\nclient.rack=from-file\nsocket.connection.setup.timeout.ms=1\n")
	rack := filepath.Join(dir, "rack")
	write(rack, "from-rack-file\n")

	for _, tt := range []struct {
		name    string
		src     Sources
		env     map[string]string
		want    kafka.Config
		origins map[string]string
	}{
		{
			name:    "nothing is set",
			want:    kafka.Config{Brokers: []string{DefaultBroker}},
			origins: map[string]string{"bootstrap.servers": "default"},
		},
		{
			name:    "the program has a client id of its own",
			src:     Sources{ClientID: "millrace-x/1"},
			want:    kafka.Config{Brokers: []string{DefaultBroker}, ClientID: "millrace-x/1"},
			origins: map[string]string{"client.id": "default"},
		},
		{
			name:    "a file",
			src:     Sources{File: file, ClientID: "millrace-x/1"},
			want:    kafka.Config{Brokers: []string{"file:1"}, ClientID: "from-file", Rack: "from-file", DialTimeout: time.Millisecond},
			origins: map[string]string{"client.id": file + ":2"},
		},
		{
			name: "environment over file",
			src:  Sources{File: file},
			env:  map[string]string{"MILLRACE_BROKERS": "env:1", "MILLRACE_CLIENT_ID": "from-env"},
			want: kafka.Config{Brokers: []string{"env:1"}, ClientID: "from-env", Rack: "from-file", DialTimeout: time.Millisecond},
			origins: map[string]string{
				"bootstrap.servers": "MILLRACE_BROKERS", "client.id": "MILLRACE_CLIENT_ID", "client.rack": file + ":3",
			},
		},
		{
			name:    "an empty environment variable is none",
			src:     Sources{File: file},
			env:     map[string]string{"MILLRACE_BROKERS": "", "MILLRACE_CLIENT_ID": "", "MILLRACE_CLIENT_RACK_FILE": ""},
			want:    kafka.Config{Brokers: []string{"file:1"}, ClientID: "from-file", Rack: "from-file", DialTimeout: time.Millisecond},
			origins: map[string]string{"client.id": file + ":2"},
		},
		{
			name:    "a file that the environment names",
			src:     Sources{File: file},
			env:     map[string]string{"MILLRACE_CLIENT_RACK_FILE": rack},
			want:    kafka.Config{Brokers: []string{"file:1"}, ClientID: "from-file", Rack: "from-rack-file", DialTimeout: time.Millisecond},
			origins: map[string]string{"client.rack": "MILLRACE_CLIENT_RACK_FILE (" + rack + ")"},
		},
		{
			name:    "flag over environment, the last of two",
			src:     Sources{File: file, Flags: []string{"client.id=first", "client.id=last", "bootstrap.servers=x:1"}},
			env:     map[string]string{"MILLRACE_BOOTSTRAP_SERVERS": "env:1", "MILLRACE_CLIENT_ID": "from-env"},
			want:    kafka.Config{Brokers: []string{"x:1"}, ClientID: "last", Rack: "from-file", DialTimeout: time.Millisecond},
			origins: map[string]string{"client.id": "-X", "bootstrap.servers": "-X"},
		},
		{
			name:    "--brokers over all",
			src:     Sources{File: file, Flags: []string{"bootstrap.servers=x:1"}, Brokers: []string{"flag:1", "flag:2"}},
			env:     map[string]string{"MILLRACE_BROKERS": "env:1"},
			want:    kafka.Config{Brokers: []string{"flag:1", "flag:2"}, ClientID: "from-file", Rack: "from-file", DialTimeout: time.Millisecond},
			origins: map[string]string{"bootstrap.servers": "--brokers"},
		},
		{
			name: "an empty value resets a setting",
			src:  Sources{File: file, Flags: []string{"client.id=", "client.rack=", "socket.connection.setup.timeout.ms="}},
			want: kafka.Config{Brokers: []string{"file:1"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.src.LookupEnv = lookup(tt.env)
			s, err := tt.src.Load()
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(s.Config, tt.want) {
				t.Errorf("got  %+v\nwant %+v", s.Config, tt.want)
			}
			for key, want := range tt.origins {
				if got := s.entries[key].origin; got != want {
					t.Errorf("%s comes from %q, want %q", key, got, want)
				}
			}
		})
	}
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}
}

func TestASecretIsAcceptedFromAnySourceButTheCommandLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(" canary-1 \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"security.protocol=SASL_SSL", "sasl.mechanism=PLAIN", "sasl.username=u"}
	for _, tt := range []struct {
		name  string
		env   map[string]string
		flags []string
	}{
		{"environment", map[string]string{"MILLRACE_SASL_PASSWORD": " canary-1 "}, nil},
		{"file named by the environment", map[string]string{"MILLRACE_SASL_PASSWORD_FILE": file}, nil},
		{"file named by a flag", nil, []string{"sasl.password.file=" + file}},
		{"login module in the environment", map[string]string{"MILLRACE_SASL_JAAS_CONFIG": `PlainLoginModule required password=" canary-1 ";`}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Sources{LookupEnv: lookup(tt.env), Flags: append(flags, tt.flags...)}.Load()
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Config.SASL.Password.Reveal(); got != " canary-1 " {
				t.Errorf("got %q", got)
			}
		})
	}
	for _, flag := range []string{
		"sasl.password=canary-2", "sasl.jaas.config=canary-3", "ssl.keystore.key=canary-4", "sasl.pasword=canary-5", "canary-6",
		"sasl.oauthbearer.client.secret=canary-7",
	} {
		_, err := Sources{Flags: append(flags, flag)}.Load()
		if err == nil {
			t.Errorf("-X %s was accepted", flag)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("-X %s is repeated: %v", flag, err)
		}
	}
}

func TestFlagsAndEnvironmentAreStrict(t *testing.T) {
	for _, tt := range []struct {
		flags []string
		env   map[string]string
		want  string
	}{
		{flags: []string{"client.idd=x"}, want: "-X: client.idd: not a setting of Millrace; did you mean client.id?"},
		{flags: []string{"nothing.like.it=x"}, want: "-X: nothing.like.it: not a setting of Millrace; -X list shows all settings"},
		{flags: []string{"acks=1"}, want: "-X: acks: Millrace sets this itself"},
		{flags: []string{"security.protocol"}, want: "-X: want key=value, list or dump"},
		{env: map[string]string{"MILLRACE_ISOLATION_LEVEL": "read_uncommitted"}, want: "MILLRACE_ISOLATION_LEVEL: isolation.level: Millrace sets"},
		{env: map[string]string{"MILLRACE_SECURITY_PROTOCOL": "tls"}, want: `MILLRACE_SECURITY_PROTOCOL: security.protocol: "tls" is not supported`},
		{env: map[string]string{"MILLRACE_SASL_PASSWORD": "a", "MILLRACE_SASL_PASSWORD_FILE": "b"}, want: "MILLRACE_SASL_PASSWORD_FILE is set too: set one"},
		{env: map[string]string{"MILLRACE_SASL_PASSWORD_FILE": "no-such-file"}, want: "MILLRACE_SASL_PASSWORD_FILE: sasl.password.file: open no-such-file"},
	} {
		_, err := Sources{Flags: tt.flags, LookupEnv: lookup(tt.env)}.Load()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v %v: got %v, want %q in it", tt.flags, tt.env, err, tt.want)
		}
	}
}

func TestAllErrorsAreReportedTogether(t *testing.T) {
	_, err := Sources{
		File:      "testdata/faults.properties",
		LookupEnv: lookup(map[string]string{"MILLRACE_HTTPS_CA_LOCATION_FILE": "no-such-file"}),
		Flags:     []string{"acks=0"},
	}.Load()
	if err == nil || strings.Count(err.Error(), "\n") < 9 {
		t.Errorf("got %v", err)
	}
}

// Every property has an environment variable, and no two share one.
func TestPropertyNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, p := range properties() {
		for _, name := range append([]string{p.name}, p.aliases...) {
			for _, env := range []string{EnvName(name), EnvName(name + ".file")} {
				if other, ok := seen[env]; ok {
					t.Errorf("%s and %s are both %s", other, name, env)
				}
				seen[env] = name
			}
		}
		if (p.set == nil) == (p.expand == nil) {
			t.Errorf("%s: want one of set and expand", p.name)
		}
		if p.help == "" {
			t.Errorf("%s has no help", p.name)
		}
	}
	var list bytes.Buffer
	if err := ListProperties(&list); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(list.String()) {
		if len(line) > 240 {
			t.Errorf("a line of the list is too long: %s", line)
		}
	}
}

func TestParseProperties(t *testing.T) {
	type kv = map[string]string
	for _, tt := range []struct {
		name, text string
		want       kv
	}{
		{"separators", "a=1\nb:2\nc 3\nd\t=\t4\ne = =5\n", kv{"a": "1", "b": "2", "c": "3", "d": "4", "e": "=5"}},
		{"comments and blank lines", "# a=1\n  ! b=2\n\n \t\nc=3 # not a comment", kv{"c": "3 # not a comment"}},
		{"keys without a value", "a\nb=\nc:", kv{"a": "", "b": "", "c": ""}},
		{"continued lines", "a=1,\\\n   2,\\\n\t3\nb=x\\\\\nc=y", kv{"a": "1,2,3", "b": `x\`, "c": "y"}},
		{"a comment is not continued", "# a \\\nb=1", kv{"b": "1"}},
		{"escapes", `a\ b=\t\n\\\=` + "\n" + `c\:d=\u00e9\u20AC`, kv{"a b": "\t\n\\=", "c:d": "é€"}},
		{"surrogates", `a=\uD83D\uDE00` + "\n" + `b=\uD83Dx` + "\n" + `c=\uDE00`, kv{"a": "😀", "b": "\uFFFDx", "c": "\uFFFD"}},
		{"line ends of Windows", "\uFEFFa=1\r\nb=2\\\r\n3\r\n", kv{"a": "1", "b": "23"}},
		{"trailing blanks are part of the value", "a=1 ", kv{"a": "1 "}},
		{"the end of the file continues nothing", `a=1\`, kv{"a": "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lines, err := parseProperties(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			got := kv{}
			for _, l := range lines {
				got[l.key] = l.value
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseProperties(f *testing.F) {
	files, err := filepath.Glob("testdata/*.properties")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add("a\\ b\\=c : \\uD83D\\uDE00 \\\n  more\\\\\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := parseProperties(strings.NewReader(text))
		if err != nil {
			return
		}
		// The parsed lines, written with all special bytes escaped, parse to the
		// same lines.
		var again strings.Builder
		for _, l := range lines {
			fmt.Fprintf(&again, "%s=%s\n", escapeProperty(l.key), escapeProperty(l.value))
		}
		second, err := parseProperties(strings.NewReader(again.String()))
		if err != nil {
			t.Fatalf("%q: %v", again.String(), err)
		}
		if len(second) != len(lines) {
			t.Fatalf("%d lines, then %d from %q", len(lines), len(second), again.String())
		}
		for i := range lines {
			if lines[i].key != second[i].key || lines[i].value != second[i].value {
				t.Fatalf("%+v, then %+v", lines[i], second[i])
			}
		}
	})
}

func escapeProperty(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; c {
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		case '\\', '=', ':', ' ', '\t', '\f', '#', '!':
			b.WriteByte('\\')
			b.WriteString(map[byte]string{'\t': "t", '\f': "f"}[c])
			if c != '\t' && c != '\f' {
				b.WriteByte(c)
			}
		default:
			b.WriteByte(c)
		}
	}
	if s == "" {
		return ""
	}
	return b.String()
}

func FuzzExpandJAAS(f *testing.F) {
	f.Add(`org.apache.kafka.common.security.scram.ScramLoginModule required username="u" password="p\"w";`)
	f.Add(`OAuthBearerLoginModule required clientId=c clientSecret='s' extension_a="b";`)
	f.Add(`PlainLoginModule required password="=" ;`)
	f.Add(`PlainLoginModule required "=" = "=";`)
	f.Fuzz(func(t *testing.T, text string) {
		settings, err := expandJAAS(text)
		if err != nil {
			return
		}
		for _, s := range settings {
			if !strings.HasPrefix(s.name, "sasl.") {
				t.Errorf("%q gives %q", text, s.name)
			}
		}
	})
}
