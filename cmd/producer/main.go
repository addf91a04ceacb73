// Command producer encodes JSON lines as Avro events and sends them to topics. See
// producer --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/app"
)

func main() {
	os.Exit(app.NewEnv().Main(os.Args[1:], app.Producer))
}
