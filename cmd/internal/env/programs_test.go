package env

import (
	"bytes"
	"errors"
	"flag"
	"strings"
	"testing"
)

func TestHelpNamesEveryVariable(t *testing.T) {
	var b bytes.Buffer
	if err := Flags("gateway", "gateway answers callbacks.", []string{"-h"}, &b, append(Gateway(), Worker()...)); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("got %v", err)
	}
	for _, name := range []string{
		"BRIDGE_NATS_URL", "BRIDGE_NATS_CREDS", "BRIDGE_NATS_NKEY", "BRIDGE_NATS_CA", "BRIDGE_NATS_CERT", "BRIDGE_NATS_KEY",
		"BRIDGE_NATS_MONITOR_URL", "BRIDGE_DATA_DIR", "BRIDGE_DURABILITY", "BRIDGE_SPOOL", "BRIDGE_LISTEN", "BRIDGE_OPS_LISTEN",
		"BRIDGE_VERIFY_DIR", "BRIDGE_API_URL", "BRIDGE_RULES", "BRIDGE_LOG_LEVEL", "BRIDGE_APPS", "BRIDGE_ACK_WAIT",
		"BRIDGE_APP_<NAME>_CORP_ID", "BRIDGE_APP_<NAME>_AGENT_ID", "BRIDGE_APP_<NAME>_KIND", "BRIDGE_APP_<NAME>_TOKEN",
		"BRIDGE_APP_<NAME>_AES_KEY", "BRIDGE_APP_<NAME>_RECEIVE_IDS", "BRIDGE_APP_<NAME>_SECRET",
	} {
		if !strings.Contains(b.String(), "  "+name+" ") {
			t.Errorf("the help does not name %s", name)
		}
	}
	for _, v := range append(Gateway(), Worker()...) {
		if v.Description == "" {
			t.Errorf("%s has no description", v.Name)
		}
	}
	if err := Flags("gateway", "", []string{"serve"}, &b, nil); err == nil {
		t.Error("an argument was taken in silence")
	}
}

func TestReadGatewayReportsAllMistakesOfAllApps(t *testing.T) {
	t.Setenv("BRIDGE_APPS", "demo,ops")
	t.Setenv("BRIDGE_DURABILITY", "perhaps")
	t.Setenv("BRIDGE_APP_DEMO_TOKEN", "secret-token")
	t.Setenv("BRIDGE_APP_DEMO_AES_KEY", "short")
	_, err := ReadGateway()
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"BRIDGE_DURABILITY", "BRIDGE_APP_DEMO_CORP_ID", "BRIDGE_APP_DEMO_AES_KEY", "BRIDGE_APP_OPS_TOKEN", "BRIDGE_APP_OPS_AES_KEY", "BRIDGE_APP_OPS_CORP_ID"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %s", err, want)
		}
	}
	for _, value := range []string{"perhaps", "secret-token", "short"} {
		if strings.Contains(err.Error(), value) {
			t.Errorf("the error quotes %q: %v", value, err)
		}
	}
}
