package kafka

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Sources are the places that settings of Kafka clients come from, under the
// names that the Java client and librdkafka know them by. The later of the
// fields wins, setting by setting; what none gives has a default.
type Sources struct {
	// File is the path of a property file of either family; none if empty. It
	// is read by Java's rules: a backslash is an escape.
	File string

	// LookupEnv finds MILLRACE_SASL_USERNAME for sasl.username, and so on, and
	// MILLRACE_SASL_PASSWORD_FILE for a file that holds the value; as
	// [os.LookupEnv]. What is set to nothing counts as not set. No environment
	// if nil.
	LookupEnv func(string) (string, bool)

	// Flags are settings as key=value, in the order of the command line.
	// Secrets are refused here: other users can see a command line.
	Flags []string

	// Brokers, unless empty, is the value of the flag --brokers.
	Brokers []string

	// ClientID is the client.id if nobody sets another.
	ClientID string
}

// Settings are what [Sources] gave.
type Settings struct {
	// Config has Brokers, ClientID, Rack, TLS, SASL and DialTimeout set.
	Config Config

	// Warnings say, each with its place, what was ignored.
	Warnings []string

	entries map[string]entry // by the property's own name
}

// An entry is a setting as it was given.
type entry struct {
	value  string
	origin string // "--brokers", "-X", an environment name, file:line, "default"
}

// A property is a setting that Millrace takes.
type property struct {
	name    string
	aliases []string // other names of the same
	help    string
	secret  bool
	def     string // what holds if nobody sets it, for people to read
	// set puts the value into the configuration. Its error does not repeat a
	// secret. It is nil if the property only stands for others (expand).
	set func(c *Config, value string) error
	// expand gives the settings that the value stands for.
	expand func(value string) ([]setting, error)
}

type setting struct{ name, value string }

// DefaultBroker is where a broker is looked for if nothing else is said.
const DefaultBroker = "127.0.0.1:9092"

const envPrefix = "MILLRACE_"

// endpointAlgorithm is the only setting whose empty value says something: that
// names shall not be checked.
const endpointAlgorithm = "ssl.endpoint.identification.algorithm"

// properties returns what Millrace takes, in the order in which people read it.
func properties() []property {
	return []property{
		{name: "bootstrap.servers", aliases: []string{"metadata.broker.list", "brokers"}, def: DefaultBroker,
			help: "brokers to ask for the cluster: host:port,host:port (flag --brokers)",
			set: func(c *Config, v string) error {
				c.Brokers = nil
				for b := range strings.SplitSeq(v, ",") {
					if b = strings.TrimSpace(b); b != "" {
						c.Brokers = append(c.Brokers, b)
					}
				}
				return nil
			}},
		{name: "client.id", help: "name in the logs and quotas of brokers", def: "the program's name and version",
			set: func(c *Config, v string) error { c.ClientID = v; return nil }},
		{name: "client.rack", help: "where this client runs, to read from a replica nearby",
			set: func(c *Config, v string) error { c.Rack = v; return nil }},
		{name: "socket.connection.setup.timeout.ms", help: "time for a connection to be made, TLS included", def: "10000",
			set: func(c *Config, v string) error {
				ms, err := strconv.Atoi(v)
				if err != nil || ms <= 0 || ms > 24*3600*1000 {
					return errors.New("want a number of milliseconds, from 1 up to a day")
				}
				c.DialTimeout = time.Duration(ms) * time.Millisecond
				return nil
			}},
		{name: "security.protocol", help: "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL", def: "by what else is set",
			set: setProtocol},

		{name: "sasl.mechanism", aliases: []string{"sasl.mechanisms"}, help: mechanismsInWords,
			set: func(c *Config, v string) error {
				v = strings.ToUpper(v)
				if !slices.Contains([]string{mechanismPlain, mechanismScram256, mechanismScram512, mechanismOAuth}, v) {
					return fmt.Errorf("%q is not supported; want %s", v, mechanismsInWords)
				}
				c.SASL.Mechanism = v
				return nil
			}},
		{name: "sasl.username", help: "user for PLAIN and SCRAM",
			set: func(c *Config, v string) error { c.SASL.Username = v; return nil }},
		{name: "sasl.password", secret: true, help: "password for PLAIN and SCRAM",
			set: func(c *Config, v string) error { c.SASL.Password = NewSecret(v); return nil }},
		{name: "sasl.jaas.config", secret: true, help: "the Java client's way to give user and password, or the OAuth client",
			expand: expandJAAS},
		{name: oauthKeyURL, help: "where OAUTHBEARER gets its tokens (client-credentials grant)",
			set: func(c *Config, v string) error { c.SASL.OAuth.TokenURL = v; return nil }},
		{name: oauthKeyID, aliases: []string{"sasl.oauthbearer.client.id"}, help: "the OAuth client's id",
			set: func(c *Config, v string) error { c.SASL.OAuth.ClientID = v; return nil }},
		{name: oauthKeySecret, aliases: []string{"sasl.oauthbearer.client.secret"}, secret: true, help: "the OAuth client's secret",
			set: func(c *Config, v string) error { c.SASL.OAuth.ClientSecret = NewSecret(v); return nil }},
		{name: "sasl.oauthbearer.scope", aliases: []string{"sasl.oauthbearer.client.credentials.scope"}, help: "scope to ask tokens for",
			set: func(c *Config, v string) error { c.SASL.OAuth.Scope = v; return nil }},
		{name: "sasl.oauthbearer.extensions", help: "sent to brokers with the token: key=value,key=value",
			set: func(c *Config, v string) error {
				ext := map[string]string{}
				for pair := range strings.SplitSeq(v, ",") {
					key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
					if !ok {
						return errors.New("want key=value,key=value")
					}
					ext[key] = value
				}
				c.SASL.OAuth.Extensions = ext
				return checkExtensions(ext)
			}},
		{name: "https.ca.location", help: "PEM file of authorities to trust at the token endpoint", def: "the system's",
			set: func(c *Config, v string) error { c.SASL.OAuth.CAFile = v; return nil }},
		{name: "sasl.allow.cleartext", help: "true: let PLAIN and OAUTHBEARER send secrets unencrypted to other machines", def: "false",
			set: func(c *Config, v string) (err error) { c.SASL.AllowCleartext, err = parseBool(v); return err }},

		{name: "ssl.ca.location", aliases: []string{"ssl.truststore.location"}, help: "PEM file of authorities to trust", def: "the system's",
			set: func(c *Config, v string) error { c.TLS.CAFile = v; return nil }},
		{name: "ssl.ca.pem", aliases: []string{"ssl.truststore.certificates"}, help: "the same as text",
			set: func(c *Config, v string) error { c.TLS.CAPEM = v; return nil }},
		{name: "ssl.certificate.location", help: "PEM file of the client's certificate and chain",
			set: func(c *Config, v string) error { c.TLS.CertFile = v; return nil }},
		{name: "ssl.certificate.pem", aliases: []string{"ssl.keystore.certificate.chain"}, help: "the same as text",
			set: func(c *Config, v string) error { c.TLS.CertPEM = v; return nil }},
		{name: "ssl.key.location", help: "PEM file of the client's private key, not encrypted",
			set: func(c *Config, v string) error { c.TLS.KeyFile = v; return nil }},
		{name: "ssl.key.pem", aliases: []string{"ssl.keystore.key"}, secret: true, help: "the same as text",
			set: func(c *Config, v string) error { c.TLS.KeyPEM = NewSecret(v); return nil }},
		{name: "ssl.keystore.location", help: "one PEM file of certificate, chain and key",
			expand: func(v string) ([]setting, error) {
				return []setting{{"ssl.certificate.location", v}, {"ssl.key.location", v}}, nil
			}},
		{name: "ssl.truststore.type", help: "PEM, which is all that is supported", set: onlyPEM},
		{name: "ssl.keystore.type", help: "PEM, which is all that is supported", set: onlyPEM},
		{name: endpointAlgorithm, help: "https: a broker's certificate must carry its name", def: "https",
			set: func(_ *Config, v string) error {
				if !strings.EqualFold(v, "https") {
					return errors.New("the name in a broker's certificate is always checked; say with ssl.server.name which name it carries")
				}
				return nil
			}},
		{name: "ssl.server.name", help: "name that brokers' certificates carry", def: "the host that is dialled",
			set: func(c *Config, v string) error { c.TLS.ServerName = v; return nil }},
		{name: "enable.ssl.certificate.verification", help: "false: accept any certificate of anybody (for experiments only)", def: "true",
			set: func(c *Config, v string) error {
				verify, err := parseBool(v)
				c.TLS.InsecureSkipVerify = err == nil && !verify
				return err
			}},
	}
}

// decided are the settings that Millrace's guarantees rest on. A file may have
// them with the value that holds anyway.
func decided() map[string][]string {
	return map[string][]string{
		"acks":                                  {"all", "-1"},
		"request.required.acks":                 {"all", "-1"},
		"enable.idempotence":                    {"true"},
		"max.in.flight.requests.per.connection": {"1", "2", "3", "4", "5"},
		"max.in.flight":                         {"1", "2", "3", "4", "5"},
		"isolation.level":                       {"read_committed"},
		"enable.auto.commit":                    {"false"},
		"enable.auto.offset.store":              {"false"},
		"allow.auto.create.topics":              {"false"},
		"check.crcs":                            {"true"},
		"partitioner":                           {"murmur2"},
		"transactional.id":                      nil,
		"transaction.timeout.ms":                nil,
		"auto.offset.reset":                     nil,
		"group.id":                              nil,
		"group.protocol":                        nil,
		"partition.assignment.strategy":         nil,
		"partitioner.class":                     nil,
		"interceptor.classes":                   nil,
	}
}

func setProtocol(c *Config, v string) error {
	switch strings.ToUpper(v) {
	case "PLAINTEXT", "SASL_PLAINTEXT":
		c.TLS.Enabled = false
	case "SSL", "SASL_SSL":
		c.TLS.Enabled = true
	default:
		return fmt.Errorf("%q is none of PLAINTEXT, SSL, SASL_PLAINTEXT and SASL_SSL", v)
	}
	return nil
}

func onlyPEM(_ *Config, v string) error {
	if !strings.EqualFold(v, "PEM") {
		return fmt.Errorf("%q is not supported, only PEM; keytool -exportcert -rfc and openssl pkcs12 convert", v)
	}
	return nil
}

func parseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("want true or false")
}

// Load reads the sources. The error tells of everything that is wrong, each
// with its place, and repeats no secret.
func (s Sources) Load() (*Settings, error) {
	l := &loader{
		names:   map[string]*property{},
		decided: decided(),
		entries: map[string]entry{},
	}
	all := properties()
	for i := range all {
		p := &all[i]
		for _, name := range append([]string{p.name}, p.aliases...) {
			l.names[name] = p
		}
	}

	if s.File != "" {
		l.file(s.File)
	}
	if s.LookupEnv != nil {
		l.environment(all, s.LookupEnv)
	}
	l.flags(s.Flags)
	if len(s.Brokers) > 0 {
		l.entries["bootstrap.servers"] = entry{strings.Join(s.Brokers, ","), "--brokers"}
	}

	if _, ok := l.entries["bootstrap.servers"]; !ok {
		l.entries["bootstrap.servers"] = entry{DefaultBroker, "default"}
	}
	if _, ok := l.entries["client.id"]; !ok && s.ClientID != "" {
		l.entries["client.id"] = entry{s.ClientID, "default"}
	}
	settings := &Settings{entries: l.entries}
	l.configure(all, &settings.Config)
	settings.Warnings = l.warnings
	if len(l.faults) > 0 {
		return nil, errors.Join(l.faults...)
	}
	return settings, nil
}

type loader struct {
	names    map[string]*property // by every name
	decided  map[string][]string
	entries  map[string]entry
	warnings []string
	faults   []error
}

func (l *loader) fault(origin, key, format string, args ...any) {
	l.faults = append(l.faults, fmt.Errorf("%s: %s: %w", origin, key, fmt.Errorf(format, args...)))
}

func (l *loader) warn(origin, format string, args ...any) {
	l.warnings = append(l.warnings, origin+": "+fmt.Sprintf(format, args...))
}

func (l *loader) file(path string) {
	f, err := os.Open(path)
	if err != nil {
		l.faults = append(l.faults, fmt.Errorf("--command-config: %w", err))
		return
	}
	defer func() { _ = f.Close() }() // only read from
	lines, err := parseProperties(f)
	if err != nil {
		l.faults = append(l.faults, fmt.Errorf("%s:%w", path, err)) // it begins with the line
		return
	}
	first := map[string]string{} // where a property was set
	for _, line := range lines {
		origin := path + ":" + strconv.Itoa(line.number)
		if line.dropped {
			l.warn(origin, "%s: a backslash that begins no escape is dropped, as in Java; write \\\\ for a backslash", line.key)
		}
		if p, _ := l.property(line.key); p != nil {
			if at, again := first[p.name]; again {
				l.warn(origin, "%s is set again, and replaces what %s says", line.key, at)
			}
			first[p.name] = origin
		}
		if l.set(line.key, line.value, origin) {
			continue
		}
		hint := ""
		if near := l.nearest(line.key); near != "" {
			hint = "; did you mean " + near + "?"
		}
		l.warn(origin, "%s is ignored: not a setting of Millrace%s", line.key, hint)
	}
}

func (l *loader) environment(all []property, lookup func(string) (string, bool)) {
	for _, p := range all {
		for _, key := range append([]string{p.name}, p.aliases...) {
			name := EnvName(key)
			value, _ := lookup(name)
			file, _ := lookup(name + "_FILE")
			switch {
			case value != "" && file != "":
				l.fault(name, key, "%s_FILE is set too: set one", name)
			case value != "":
				l.set(key, value, name)
			case file != "":
				l.set(key+".file", file, name+"_FILE")
			}
		}
	}
	for key := range l.decided {
		if value, ok := lookup(EnvName(key)); ok {
			l.set(key, value, EnvName(key))
		}
	}
}

// EnvName returns the environment variable of a setting: MILLRACE_CLIENT_ID for
// client.id.
func EnvName(key string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

func (l *loader) flags(flags []string) {
	const origin = "-X"
	for _, f := range flags {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			// What it is may be a secret: it is not shown.
			l.faults = append(l.faults, errors.New("-X: want key=value, list or dump"))
			continue
		}
		key = strings.TrimSpace(key)
		p, fromFile := l.property(key)
		switch {
		case p != nil && p.secret && !fromFile:
			l.fault(origin, key, "a secret on a command line can be seen by others; use %s, %s_FILE, -X %s.file=FILE or --command-config", EnvName(key), EnvName(key), key)
		case !l.set(key, value, origin):
			hint := "-X list shows them all"
			if near := l.nearest(key); near != "" {
				hint = "did you mean " + near + "?"
			}
			l.fault(origin, key, "not a setting of Millrace; %s", hint)
		}
	}
}

// property returns the property of a name, and whether the name says that the
// value is in a file.
func (l *loader) property(key string) (p *property, fromFile bool) {
	if p := l.names[key]; p != nil {
		return p, false
	}
	key, fromFile = strings.CutSuffix(key, ".file")
	return l.names[key], fromFile
}

// set takes a setting, or reports that nobody knows it.
func (l *loader) set(key, value, origin string) (known bool) {
	if fixed, ok := l.decided[key]; ok {
		if !slices.Contains(fixed, strings.ToLower(strings.TrimSpace(value))) {
			l.fault(origin, key, "Millrace decides this itself, because its guarantees depend on it; remove it")
		}
		return true
	}
	if key == "ssl.key.password" {
		l.warn(origin, "%s is ignored: keys must not be encrypted", key)
		return true
	}
	p, fromFile := l.property(key)
	if p == nil {
		return false
	}
	if fromFile {
		data, err := os.ReadFile(value)
		if err != nil {
			l.fault(origin, key, "%w", err)
			return true
		}
		origin += " (" + value + ")"
		value = strings.TrimRight(string(data), "\r\n")
	} else if !p.secret {
		value = strings.TrimSpace(value)
	}
	if value == "" && p.name != endpointAlgorithm {
		delete(l.entries, p.name) // as if nobody had set it
		return true
	}
	settings, err := []setting{{p.name, value}}, error(nil)
	if p.expand != nil {
		settings, err = p.expand(value)
	}
	for _, s := range settings {
		// Tried on nothing, so that the faults come in the order of the lines.
		if err = l.names[s.name].set(&Config{}, s.value); err != nil {
			break
		}
		l.entries[s.name] = entry{s.value, origin}
	}
	if err != nil {
		l.fault(origin, key, "%w", err)
	}
	return true
}

// configure puts the entries into the configuration.
func (l *loader) configure(all []property, c *Config) {
	l.inferProtocol()
	for _, p := range all {
		if e, ok := l.entries[p.name]; ok {
			if err := p.set(c, e.value); err != nil {
				l.fault(e.origin, p.name, "%w", err)
			}
		}
	}
}

// inferProtocol turns TLS on if anything is said about it, and SASL likewise.
// If security.protocol is given it decides, and what contradicts it is left out
// with a warning.
func (l *loader) inferProtocol() {
	var ssl, sasl string // the first property that asks for it
	for _, name := range slices.Sorted(maps.Keys(l.entries)) {
		switch {
		case strings.HasPrefix(name, "ssl.") || name == "enable.ssl.certificate.verification":
			ssl = cmp.Or(ssl, name)
		case strings.HasPrefix(name, "sasl.") && name != "sasl.allow.cleartext":
			sasl = cmp.Or(sasl, name)
		}
	}
	given, ok := l.entries["security.protocol"]
	if !ok {
		protocol := "PLAINTEXT"
		if ssl != "" {
			protocol = "SSL"
		}
		if sasl != "" {
			protocol = "SASL_" + protocol
		}
		if protocol != "PLAINTEXT" {
			l.entries["security.protocol"] = entry{protocol, "because of " + strings.Join(slices.DeleteFunc([]string{ssl, sasl}, func(s string) bool { return s == "" }), " and ")}
		}
	} else {
		protocol := strings.ToUpper(given.value) // one of the four, or it would not be here
		if ssl != "" && !strings.HasSuffix(protocol, "SSL") {
			l.warn(l.entries[ssl].origin, "%s has no effect with security.protocol=%s (%s)", ssl, given.value, given.origin)
		}
		if !strings.HasPrefix(protocol, "SASL_") {
			if sasl != "" {
				l.warn(l.entries[sasl].origin, "%s has no effect with security.protocol=%s (%s)", sasl, given.value, given.origin)
			}
			for name := range l.entries {
				if strings.HasPrefix(name, "sasl.") {
					delete(l.entries, name)
				}
			}
			return
		}
		sasl = "security.protocol"
	}
	if sasl != "" && len(l.faults) == 0 { // else it may be missing because it is wrong
		if _, ok := l.entries["sasl.mechanism"]; !ok {
			l.fault(l.entries[sasl].origin, "sasl.mechanism", "not set, and SASL is asked for by %s; want %s", sasl, mechanismsInWords)
		}
	}
}

// nearest returns the known name most like key, "" if none is like it.
func (l *loader) nearest(key string) string {
	best, at := "", 4 // so many edits are not a misspelling any more
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		if d := distance(key, name); d < at && d < len(name)/2 {
			best, at = name, d
		}
	}
	return best
}

// distance is the number of single edits between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			edit := diagonal
			if a[i] != b[j] {
				edit = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], edit
		}
	}
	return row[len(b)]
}

// Dump writes each setting with its value and where that comes from, secrets
// redacted, and what Millrace decides itself.
func (s *Settings) Dump(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range properties() {
		e, ok := s.entries[p.name]
		switch {
		case !ok && p.def == "":
			continue
		case !ok:
			e = entry{p.def, "default"}
		case p.secret:
			e.value = NewSecret(e.value).String()
		case strings.Contains(e.value, "\n"): // PEM as text
			e.value = strings.ReplaceAll(e.value, "\n", "\\n")
		}
		fmt.Fprintf(tw, "%s\t= %s\t# %s\n", p.name, e.value, e.origin)
	}
	for _, fixed := range []setting{
		{"acks", "all"}, {"enable.idempotence", "true"}, {"isolation.level", "read_committed"},
		{"enable.auto.commit", "false"}, {"allow.auto.create.topics", "false"}, {"partitioner", "murmur2"},
	} {
		fmt.Fprintf(tw, "%s\t= %s\t# decided by Millrace\n", fixed.name, fixed.value)
	}
	return tw.Flush()
}

// ListProperties writes the settings that [Sources] takes, one per line.
func ListProperties(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range properties() {
		var notes []string
		if p.def != "" {
			notes = append(notes, "default: "+p.def)
		}
		if p.secret {
			notes = append(notes, "secret: not with -X")
		}
		if len(p.aliases) > 0 {
			notes = append(notes, "also "+strings.Join(p.aliases, ", "))
		}
		help := p.help
		if len(notes) > 0 {
			help += " (" + strings.Join(notes, "; ") + ")"
		}
		fmt.Fprintf(tw, "%s\t%s\n", p.name, help)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, "\nKEY.file=FILE takes the value of any of them from a file. In the environment: "+EnvName("client.id")+
		" for client.id,\n"+EnvName("sasl.password")+"_FILE for a file with sasl.password. -X dump shows what is set, and where.\n")
	return err
}
