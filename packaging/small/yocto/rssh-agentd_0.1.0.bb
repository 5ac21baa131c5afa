SUMMARY = "Device agent of rssh: reverse SSH on demand"
DESCRIPTION = "Holds one idle connection, and drives the system's ssh when someone asks for a tunnel."
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "file://packaging/debian/copyright;md5=254039bd600865bc74af0b678d8ea9b1"

# Where your copy of the source is.
RSSH_SRC ?= "git://git.example.com/rssh.git;protocol=https;branch=main"
SRC_URI = "${RSSH_SRC} file://rssh-agentd.init"
SRCREV ?= "${AUTOREV}"
S = "${WORKDIR}/git"
FILESEXTRAPATHS:prepend := "${THISDIR}/..:"

# The crates of Cargo.lock: bitbake -c update_crates rssh-agentd writes this file.
include rssh-agentd-crates.inc

inherit cargo cargo-update-recipe-crates useradd update-rc.d systemd

CARGO_SRC_DIR = "agentd"
# What the device can do without: enrolment, metrics, proxies.
PACKAGECONFIG ??= "enrolment metrics proxies"
CARGO_BUILD_FLAGS:append = " --package rssh-agentd --no-default-features --features '${@",".join(d.getVar("PACKAGECONFIG").split())}'"

INITSCRIPT_NAME = "rssh-agentd"
INITSCRIPT_PARAMS = "defaults 95 10"
SYSTEMD_SERVICE:${PN} = "rssh-agentd.service"

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --no-create-home --home-dir ${localstatedir}/lib/rssh-agentd --shell /sbin/nologin rssh-agentd"

do_install:append() {
    install -d -m 0755 ${D}${sysconfdir}/rssh
    install -d -m 0700 -o rssh-agentd -g rssh-agentd ${D}${localstatedir}/lib/rssh-agentd
    install -D -m 0755 ${WORKDIR}/rssh-agentd.init ${D}${sysconfdir}/init.d/rssh-agentd
    install -D -m 0644 ${S}/packaging/systemd/rssh-agentd.service ${D}${systemd_system_unitdir}/rssh-agentd.service
}

RDEPENDS:${PN} = "openssh-ssh"
FILES:${PN} += "${systemd_system_unitdir} ${localstatedir}/lib/rssh-agentd"
